//! Maps and runs as JSON, elements in the form of `bpftool map dump`.
//!
//! Elements are read while they are written, so that a large map needs no memory for its text.

use std::io::{self, BufWriter, Write};

use serde::Serialize;
use serde::ser::{Error, SerializeSeq, Serializer};

use super::hex::Hex;
use super::{MapView, Run};
use crate::events::Received;
use crate::retval;
use crate::value::Value;

/// Writes a run and the maps after it as one JSON object. `all` shows the whole of maps that are larger
/// than anybody would want.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write_run(
    out: &mut dyn Write,
    run: &Run<'_>,
    maps: &[MapView<'_>],
    all: bool,
    pretty: bool,
) -> io::Result<()> {
    let retval = |(&value, &count): (&u32, &u64)| Retval {
        value,
        name: retval::name(run.prog_type, value),
        count,
    };
    let report = Report {
        program: run.program,
        prog_type: run.prog_type.to_string(),
        engine: run.engine.to_string(),
        runs: run.runs,
        packets_skipped: run.skipped,
        retvals: run.retvals.iter().map(retval).collect(),
        ns_per_run: run.ns_per_run(),
        maps: Maps(maps.iter().map(|map| MapReport::new(map, all)).collect()),
    };
    write(out, &report, pretty)
}

/// Writes a value as JSON: a line, or several to look at.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write(out: &mut dyn Write, value: &impl Serialize, pretty: bool) -> io::Result<()> {
    // JSON comes in pieces of a few bytes, too small to go through a `dyn` each.
    let mut out = BufWriter::with_capacity(1 << 16, out);
    if pretty {
        serde_json::to_writer_pretty(&mut out, value)?;
    } else {
        serde_json::to_writer(&mut out, value)?;
    }
    writeln!(out)?;
    out.flush()
}

/// Everything `run` prints.
#[derive(Serialize)]
struct Report<'a> {
    program: &'a str,
    #[serde(rename = "type")]
    prog_type: String,
    engine: String,
    runs: u64,
    #[serde(skip_serializing_if = "is_zero")]
    packets_skipped: u64,
    retvals: Vec<Retval>,
    ns_per_run: f64,
    maps: Maps<'a>,
}

/// A return value, its name if it has one, and how often it came.
#[derive(Serialize)]
struct Retval {
    value: u32,
    name: Option<&'static str>,
    count: u64,
}

/// Maps by name, in the order in which the object defines them.
struct Maps<'a>(Vec<MapReport<'a>>);

impl Serialize for Maps<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|map| (map.elements.view.name, map)))
    }
}

/// A map with its elements.
#[derive(Serialize)]
struct MapReport<'a> {
    #[serde(rename = "type")]
    map_type: String,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Received>,
    elements: Elements<'a>,
    #[serde(skip_serializing_if = "is_zero")]
    elements_not_shown: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl<'a> MapReport<'a> {
    /// `all` shows the whole of maps that are larger than anybody would want.
    fn new(view: &'a MapView<'a>, all: bool) -> Self {
        let readable = view.readable();
        let shown = if all { readable } else { readable.min(view.fit()) };
        Self {
            map_type: view.map.map_type().to_string(),
            key_size: view.map.key_size(),
            value_size: view.map.value_size(),
            max_entries: view.map.max_entries(),
            events: view.events,
            elements: Elements { view, shown },
            elements_not_shown: (view.map.max_entries() - shown).into(),
        }
    }
}

struct Elements<'a> {
    view: &'a MapView<'a>,
    shown: u32,
}

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { view, shown } = *self;
        let mut buffer = view.buffer();
        let mut elements = to.serialize_seq(None)?;
        for index in 0..shown {
            if view.read(index, &mut buffer).map_err(S::Error::custom)? {
                elements.serialize_element(&Element::new(view, &index.to_le_bytes(), &buffer))?;
            }
        }
        elements.end()
    }
}

/// An element: its bytes, then what they mean.
#[derive(Serialize)]
struct Element<'a> {
    #[serde(flatten)]
    bytes: Pair<Hex<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    formatted: Option<Pair<Value<'a>>>,
}

impl<'a> Element<'a> {
    fn new(view: &MapView<'a>, key: &'a [u8], element: &'a [u8]) -> Self {
        let pair = Pair::new(view.is_percpu(), Some(Hex(key)), view.values(element).map(Hex));
        let formatted = view.value.map(|ty| {
            let key = view.key.map(|ty| ty.value(key));
            Pair::new(view.is_percpu(), key, view.values(element).map(|bytes| ty.value(bytes)))
        });
        Self { bytes: pair, formatted }
    }
}

/// A key and its value, or its values on all CPUs. Sections of variables have no formatted key.
#[derive(Serialize)]
struct Pair<T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<OnCpu<T>>>,
}

#[derive(Serialize)]
struct OnCpu<T> {
    cpu: u32,
    value: T,
}

impl<T> Pair<T> {
    fn new(is_percpu: bool, key: Option<T>, mut values: impl Iterator<Item = T>) -> Self {
        if is_percpu {
            let values = (0..).zip(values).map(|(cpu, value)| OnCpu { cpu, value }).collect();
            Self { key, value: None, values: Some(values) }
        } else {
            Self { key, value: values.next(), values: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use bpfarray::Map;
    use bpfarray::attr::{MapAttr, MapType};
    use bpfarray_vm::{LoadOptions, Object};

    use super::super::SHOWN_TEXT;
    use super::*;

    fn map(map_type: MapType, value_size: u32, max_entries: u32) -> Map {
        let attr = MapAttr { map_type, key_size: 4, value_size, max_entries, ..MapAttr::default() };
        Map::create(&attr).unwrap()
    }

    /// Checks that elements take the text they are expected to take, or not much less.
    fn check_text(view: &MapView<'_>) {
        let shown = view.map.max_entries();
        let text = serde_json::to_string(&Elements { view, shown }).unwrap().len() as u64;
        let (text, expected) = (text / u64::from(shown), SHOWN_TEXT / u64::from(view.fit()));
        assert!(text <= expected, "{}: {text} bytes, not {expected}", view.name);
        assert!(expected <= 6 * text, "{}: {text} bytes, not {expected}", view.name);
    }

    #[test]
    fn the_text_of_an_element_is_estimated() {
        for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
            for value_size in [1, 8, 13, 1000] {
                let map = map(map_type, value_size, 100);
                check_text(&MapView::new("bytes", &map, None, 0, 0));
            }
        }
        let object = include_bytes!("../../tests/data/values.bpf.o");
        let loaded = Object::parse(object).unwrap().load(&LoadOptions::default()).unwrap();
        for view in crate::object::views(&loaded) {
            check_text(&view);
            // Long numbers, and names of enumerators instead of some.
            for byte in [0x01, 0x80, 0xff] {
                let value = vec![byte; view.map.user_size() as usize];
                if view.map.update_elem(0, &value, 0).is_ok() {
                    check_text(&view);
                }
            }
        }
    }

    #[test]
    fn of_a_huge_map_the_first_elements_are_written_and_the_others_counted() {
        let map = map(MapType::ARRAY, 1, 1 << 24);
        let view = MapView::new("huge", &map, None, 0, 0);
        let report = serde_json::to_value(MapReport::new(&view, false)).unwrap();
        let shown = report["elements"].as_array().unwrap().len() as u64;
        assert_eq!(shown + report["elements_not_shown"].as_u64().unwrap(), 1 << 24);
        assert_eq!(MapReport::new(&view, true).elements.shown, 1 << 24);
    }
}
