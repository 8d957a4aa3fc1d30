//! Damaged objects: an error or a run, but never a panic, and not for long.

use super::*;

/// A small generator of reproducible numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }
}

/// An object with some damage: flipped bits, other bytes, large numbers, parts moved or missing.
fn damaged(object: &[u8], random: &mut Random) -> Vec<u8> {
    let mut object = object.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(object.len());
        match random.below(6) {
            0 | 1 => object[at] ^= 1 << random.below(8),
            2 => object[at] = random.next() as u8,
            3 => {
                let end = object.len().min(at + 4);
                object[at..end].fill(if random.below(2) == 0 { 0xff } else { 0 });
            }
            4 => {
                let len = random.below(64).min(object.len() - at);
                let from = random.below(object.len() - len);
                object.copy_within(from..from + len, at);
            }
            _ => object.truncate(object.len() - random.below(object.len() / 16)),
        }
    }
    object
}

/// Runs damaged objects, and returns how many of them ran.
fn survivors(count: u32, seed: u64, mut run: impl FnMut(&str) -> bool) -> u32 {
    let object = file(OBJECT);
    let mut random = Random(seed);
    let name = format!("damaged_{seed}.bpf.o");
    (0..count).filter(|_| run(&temporary(&name, &damaged(&object, &mut random)))).count() as u32
}

#[test]
fn two_thousand_damaged_objects_are_errors_of_one_line_or_run() {
    let packet = temporary("damaged_packet", &[0; 64]);
    let ran = survivors(2000, 1, |object| {
        let args = ["bpfarray", "run", object, "--data-in", &packet, "--fuel", "100000", "--json"];
        let [json, table] = [&args[..], &args[..7]].map(|args| match in_process(args) {
            Ok(_) => true,
            Err(error) => {
                let error = error.to_string();
                assert!(error.starts_with(object) && !error.contains('\n'), "{error}");
                false
            }
        });
        assert_eq!(json, table, "{object}");
        json
    });
    // Damage must be neither harmless nor deadly, or nothing is tested.
    assert!((200..1800).contains(&ran), "{ran} of 2000 ran");
}

#[test]
fn damaged_objects_make_the_binary_fail_with_status_1() {
    let packet = temporary("damaged_packet_of_binary", &[0; 64]);
    for form in ["", "--json"] {
        survivors(40, 2, |object| {
            let args = format!("run {object} --data-in {packet} --fuel 100000 {form}");
            let output = command(&args).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            match output.status.code() {
                Some(0) => assert_eq!(stderr, "", "{args}"),
                Some(1) => assert_eq!(stderr.matches('\n').count(), 1, "{args}: {stderr}"),
                other => panic!("{args}: {other:?}: {stderr}"),
            }
            output.status.success()
        });
    }
}

#[test]
fn listing_what_damaged_objects_define_never_panics() {
    for args in [["map", "show"], ["prog", "show"]] {
        survivors(500, 3, |object| in_process(&["bpfarray", args[0], args[1], object]).is_ok());
    }
    survivors(500, 4, |object| in_process(&["bpfarray", "prog", "dump", "xlated", object]).is_ok());
}
