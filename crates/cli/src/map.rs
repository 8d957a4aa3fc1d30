//! `bpfarray map`: the maps of an object.

use std::io::Write;

use bpfarray::possible_cpus;
use bpfarray_core::attr::Creator;
use bpfarray_core::btf::Btf;
use bpfarray_vm::elf::MapSpec;
use serde::Serialize;

use crate::args::ObjectArgs;
use crate::ctype::type_name;
use crate::error::Error;
use crate::object;
use crate::report::json;
use crate::report::table::Table;

/// A map, with the names `bpftool -j map show` has.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    map_type: String,
    flags: u32,
    bytes_key: u32,
    bytes_value: u32,
    max_entries: u32,
    /// `None` for a map that cannot be created.
    bytes_memlock: Option<u64>,
    frozen: u8,
}

impl<'a> Shown<'a> {
    fn new(spec: &'a MapSpec) -> Self {
        let layout = spec.attr.check(&Creator::default());
        Self {
            name: &spec.name,
            map_type: spec.attr.map_type.to_string(),
            flags: spec.attr.map_flags.bits(),
            bytes_key: spec.attr.key_size,
            bytes_value: spec.attr.value_size,
            max_entries: spec.attr.max_entries,
            bytes_memlock: layout.ok().map(|layout| layout.mem_usage(possible_cpus())),
            frozen: spec.is_frozen().into(),
        }
    }
}

/// Lists the maps of an object, as it defines them.
///
/// # Errors
/// [`Error::File`] about the object, [`Error::Output`].
pub(crate) fn show(args: &ObjectArgs, out: &mut dyn Write) -> Result<(), Error> {
    let object = object::parse(&args.object, None)?;
    if args.output.is_json() {
        let maps: Vec<_> = object.maps().iter().map(Shown::new).collect();
        return Ok(json::write(out, &maps, args.output.pretty)?);
    }
    let columns = [("map", false), ("type", false), ("key", false), ("value", false)];
    let columns =
        columns.into_iter().chain([("entries", true), ("memory", true), ("flags", false)]);
    let mut rows = Table::new(columns);
    for spec in object.maps() {
        let shown = Shown::new(spec);
        rows.push(shown.name);
        rows.push(shown.map_type);
        rows.push(typed(object.btf(), spec.attr.btf_key_type_id, shown.bytes_key));
        rows.push(typed(object.btf(), spec.attr.btf_value_type_id, shown.bytes_value));
        rows.push(shown.max_entries);
        match shown.bytes_memlock {
            Some(bytes) => rows.push(format_args!("{bytes} B")),
            None => rows.push("unsupported"),
        }
        rows.push(flags(spec));
    }
    Ok(rows.write(out)?)
}

/// What a key or value is, and its size.
fn typed(btf: Option<&Btf>, id: u32, size: u32) -> String {
    match btf.filter(|_| id != 0) {
        Some(btf) => format!("{} ({size} B)", type_name(btf, id)),
        None => format!("{size} B"),
    }
}

fn flags(spec: &MapSpec) -> String {
    let names = spec.attr.map_flags.iter_names().map(|(name, _)| name.to_lowercase());
    let frozen = spec.is_frozen().then(|| "frozen".to_owned());
    names.chain(frozen).collect::<Vec<_>>().join(" ")
}
