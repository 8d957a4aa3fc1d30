//! Values are formatted as bpftool formats them: the same object, recorded on a live kernel.

use serde_json::json;

use super::*;

#[test]
fn values_of_every_kind_are_formatted_as_bpftool_does() {
    let recorded: Value =
        serde_json::from_slice(&file("crates/cli/tests/data/values.json")).unwrap();
    let packet = temporary("zeroes", &[0; 64]);
    let run = json(&format!("run crates/cli/tests/data/values.bpf.o --data-in {packet} --json"));
    let maps = recorded.as_object().unwrap();
    assert_eq!(run["maps"].as_object().unwrap().len(), maps.len());
    for (name, elements) in maps.iter().filter(|(name, _)| *name != "pairs") {
        assert_eq!(&run["maps"][name]["elements"], elements, "{name}");
    }
}

#[test]
fn tables_show_bit_fields_as_numbers_and_characters_as_text() {
    let packet = temporary("zeroes_again", &[0; 64]);
    let table = stdout(&format!("run crates/cli/tests/data/values.bpf.o --data-in {packet}"));
    let shown = |name: &str| {
        let name = format!("  values.{name} ");
        let line = table.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("{name} in {table}")).trim()
    };
    assert_eq!((shown("negative_bits"), shown("high"), shown("flag")), ("-2", "17", "1"));
    assert_eq!(shown("across"), "1099511627760");
    assert_eq!(shown("wide"), "0x10000000000000000000000005");
    assert_eq!((shown("control"), shown("unterminated")), (r#""a\n""#, r#""abcd""#));
    assert_eq!(shown("texts"), r#"["ab", "c"]"#);
    assert_eq!(shown("bytes"), "[1, 2, 3, 255]");
}

/// How many CPUs there are, and which one ran, is another matter on each machine.
#[test]
fn values_on_all_cpus_have_the_shape_bpftool_gives_them() {
    let recorded: Value =
        serde_json::from_slice(&file("crates/cli/tests/data/values.json")).unwrap();
    let packet = temporary("more_zeroes", &[0; 64]);
    let run = json(&format!("run crates/cli/tests/data/values.bpf.o --data-in {packet} --json"));
    let shape = |elements: &Value| {
        let mut elements = elements.clone();
        for element in elements.as_array_mut().unwrap() {
            let mut cpus = Vec::new();
            for values in ["/values", "/formatted/values"] {
                let values = element.pointer_mut(values).unwrap().as_array_mut().unwrap();
                for (cpu, value) in values.iter().enumerate() {
                    assert_eq!(value["cpu"], cpu);
                }
                cpus.push(values.len());
                values.iter_mut().for_each(|value| value["cpu"] = json!(0));
                values.sort_by_key(|value| value.to_string());
                values.dedup();
            }
            assert_eq!(cpus[0], cpus[1]);
        }
        elements
    };
    assert_eq!(shape(&run["maps"]["pairs"]["elements"]), shape(&recorded["pairs"]));
}
