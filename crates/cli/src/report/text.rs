//! Runs and maps for people: members of structs as columns, per-CPU values with their sum.

use std::io::{self, Write};

use super::cells::Cells;
use super::table::{Table, plural};
use super::{MapView, Run};
use crate::clean::Clean;
use crate::events::Received;
use crate::retval;
use crate::value::{Shape, Vars, columns};

/// Writes a run and the maps after it. `all` shows elements that are all zero too, and the whole of
/// maps that are larger than anybody would want.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write_run(
    out: &mut dyn Write,
    run: &Run<'_>,
    maps: &[MapView<'_>],
    all: bool,
) -> io::Result<()> {
    let (name, prog_type) = (Clean(run.program), run.prog_type);
    let (runs, time) = (plural(run.runs, "run"), run.time);
    writeln!(
        out,
        "{name} ({prog_type}): {runs} in {time:.1?}, {:.0} ns per run",
        run.ns_per_run()
    )?;
    if run.skipped > 0 {
        let packets = plural(run.skipped, "packet");
        writeln!(out, "{packets} skipped: too short or too long for this type of program")?;
    }
    if run.runs > 0 {
        writeln!(out)?;
        let mut rows = Table::new([("returned", true), ("", false), ("times", true)]);
        for (value, count) in &run.retvals {
            rows.push(value);
            rows.push(retval::meaning(run.prog_type, *value));
            rows.push(count);
        }
        rows.write(out)?;
    }
    maps.iter().try_for_each(|map| write_map(out, map, all))
}

fn write_map(out: &mut dyn Write, view: &MapView<'_>, all: bool) -> io::Result<()> {
    let (name, map) = (Clean(view.name), view.map);
    let (elements, size) = (plural(map.max_entries(), "element"), plural(map.value_size(), "byte"));
    writeln!(out, "\n{name}: {}, {elements} of {size}", map.map_type())?;
    if let Some(Received { records, bytes, lost }) = view.events {
        let (records, bytes) = (plural(records, "event"), plural(bytes, "byte"));
        return writeln!(out, "  {records} with {bytes} of data, {lost} lost");
    }
    let mut buffer = view.buffer();
    if (all || view.fit() > 0)
        && matches!(view.read(0, &mut buffer), Ok(true))
        && let Some(Shape::Vars(vars)) = view.value.map(|ty| ty.value(&buffer).shape())
    {
        return variables(vars).write(out);
    }
    let Elements { rows, zero, seen } = read_elements(view, all);
    if !rows.is_empty() {
        rows.write(out)?;
    }
    if zero > 0 {
        writeln!(out, "  … {} (--all shows them)", plural(zero, "zero element"))?;
    }
    match map.max_entries() - seen {
        0 => Ok(()),
        hidden if all || view.readable() == 0 => {
            writeln!(out, "  … {} cannot be read", plural(hidden, "element"))
        }
        hidden => writeln!(out, "  … {} (--all shows them)", plural(hidden, "further element")),
    }
}

fn variables(vars: Vars<'_>) -> Table {
    let mut rows = Table::new([("variable", false), ("value", false)]);
    for (name, value) in vars.iter() {
        for member in columns(value.btf(), value.ty()) {
            let dot = if member.name.is_empty() { "" } else { "." };
            rows.push(format_args!("{name}{dot}{}", member.name));
            rows.push(member.of(&value));
        }
    }
    rows
}

/// The first elements of a map.
struct Elements {
    rows: Table,
    /// How many were left out for being all zero.
    zero: u32,
    /// How many these are with those left out.
    seen: u32,
}

fn read_elements(view: &MapView<'_>, all: bool) -> Elements {
    let (scanned, mut fit) =
        if all { (view.readable(), u32::MAX) } else { (view.scanned(), view.fit()) };
    let cells = Cells::new(view);
    let cpu = view.is_percpu().then_some(("cpu", true));
    let key = ("key", view.key_is_number());
    let mut rows = Table::new(std::iter::once(key).chain(cpu).chain(cells.headings()));
    let mut buffer = view.buffer();
    let mut zero = 0;
    for index in 0..scanned {
        if !matches!(view.read(index, &mut buffer), Ok(true)) {
            continue;
        }
        if !all && is_zero(&buffer) {
            zero += 1;
            continue;
        }
        let Some(rest) = fit.checked_sub(1) else {
            return Elements { rows, zero, seen: index };
        };
        fit = rest;
        view.push_key(&mut rows, index);
        if view.is_percpu() {
            let values: Vec<_> = view.values(&buffer).collect();
            push_percpu(&mut rows, &cells, &values, all);
        } else {
            let cells = view.values(&buffer).flat_map(|value| cells.of(value));
            cells.for_each(|cell| rows.push(cell));
        }
    }
    Elements { rows, zero, seen: scanned }
}

/// A row with the sums, then one for each CPU where there is something.
fn push_percpu(rows: &mut Table, cells: &Cells<'_>, values: &[&[u8]], all: bool) {
    rows.push("sum");
    for index in 0..cells.count() {
        let sum: Option<i128> = values.iter().map(|value| cells.cell(index, value).number()).sum();
        match sum {
            Some(sum) => rows.push(sum),
            None => rows.push(""),
        }
    }
    for (cpu, value) in values.iter().enumerate().filter(|(_, value)| all || !is_zero(value)) {
        rows.push("");
        rows.push(cpu);
        cells.of(value).for_each(|cell| rows.push(cell));
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
