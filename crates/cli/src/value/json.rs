//! Values as bpftool's JSON has them under `formatted`.
//!
//! Two things are not as in bpftool: floating point numbers, which it cannot print, are numbers here, and
//! what has no value is `null` where it leaves the output broken.

use serde::ser::{Serialize, Serializer};

use super::{Shape, Value, Vars};

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.shape() {
            Shape::Unsigned(number) | Shape::Pointer(number) => to.serialize_u64(number),
            Shape::Signed(number) => to.serialize_i64(number),
            Shape::BitField { bits: number, .. } | Shape::Wide(number) => {
                to.collect_str(&format_args!("{number:#x}"))
            }
            Shape::Bool(truth) => to.serialize_bool(truth),
            Shape::Char(char) => to.serialize_char(char),
            Shape::Single(number) => to.serialize_f32(number),
            Shape::Double(number) => to.serialize_f64(number),
            Shape::Enumerator(text) | Shape::Text(text) => to.serialize_str(text),
            Shape::Fields(fields) => to.collect_map(fields.iter()),
            Shape::Items(items) => to.collect_seq(items.iter()),
            Shape::Vars(vars) => to.collect_map([(vars.section, Variables(vars))]),
            Shape::Unknown => to.serialize_unit(),
        }
    }
}

/// A list of objects with one member each, so that the variables keep their order.
struct Variables<'a>(Vars<'a>);

impl Serialize for Variables<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(Variable))
    }
}

struct Variable<'a>((&'a str, Value<'a>));

impl Serialize for Variable<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map([self.0])
    }
}
