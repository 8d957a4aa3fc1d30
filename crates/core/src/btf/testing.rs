//! What tests build BTF from.

extern crate std;

use std::string::String;
use std::vec::Vec;

use super::{Btf, Kind};

pub(super) fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.as_chunks().0.iter().map(|[high, low]| high << 4 | low).collect()
}

/// Types by the order of the calls, each of which gives the new type's id.
pub(super) struct Builder {
    words: Vec<u32>,
    strings: String,
    count: u32,
}

impl Builder {
    /// With `int` as type 1.
    pub(super) fn new() -> Self {
        let mut builder = Self { words: Vec::new(), strings: String::from("\0"), count: 0 };
        builder.int("int", 4, 1);
        builder
    }

    pub(super) fn build(&self) -> Btf {
        let btf =
            Btf { words: self.words.clone(), starts: Vec::new(), strings: self.strings.clone() };
        Btf::parse(&btf.to_bytes()).unwrap()
    }

    fn string(&mut self, text: &str) -> u32 {
        let at = self.strings.len() as u32;
        self.strings.push_str(text);
        self.strings.push('\0');
        at
    }

    pub(super) fn ty(&mut self, name: &str, kind: Kind, len: u32, value: u32, tail: &[u32]) -> u32 {
        let name = self.string(name);
        self.words.extend([name, (kind as u32) << 24 | len, value]);
        self.words.extend(tail);
        self.count += 1;
        self.count
    }

    /// `encoding` is 0 for unsigned, 1 for signed, 2 for char, 4 for bool.
    pub(super) fn int(&mut self, name: &str, size: u32, encoding: u32) -> u32 {
        self.ty(name, Kind::Int, 0, size, &[(encoding << 24) | (size * 8)])
    }

    pub(super) fn ptr(&mut self, to: u32) -> u32 {
        self.ty("", Kind::Ptr, 0, to, &[])
    }

    pub(super) fn array(&mut self, of: u32, len: u32) -> u32 {
        self.ty("", Kind::Array, 0, 0, &[of, 1, len])
    }

    /// Members are type and offset in bytes.
    pub(super) fn composite(
        &mut self,
        kind: Kind,
        name: &str,
        size: u32,
        members: &[(u32, u32)],
    ) -> u32 {
        let mut tail = Vec::new();
        for (index, (ty, offset)) in members.iter().enumerate() {
            tail.extend([self.string(&std::format!("m{index}")), *ty, offset * 8]);
        }
        self.ty(name, kind, members.len() as u32, size, &tail)
    }

    pub(super) fn structure(&mut self, name: &str, size: u32, members: &[(u32, u32)]) -> u32 {
        self.composite(Kind::Struct, name, size, members)
    }

    /// A struct with this name that has bytes only.
    pub(super) fn opaque(&mut self, name: &str, size: u32) -> u32 {
        let bytes = self.array(1, size / 4);
        self.structure(name, size, &[(bytes, 0)])
    }

    /// Pointer to a new struct `target` with a type tag.
    pub(super) fn tagged(&mut self, tag: &str, target: &str) -> u32 {
        let target = self.opaque(target, 8);
        let tagged = self.ty(tag, Kind::TypeTag, 0, target, &[]);
        self.ptr(tagged)
    }

    pub(super) fn enumeration(&mut self, size: u32, values: &[(&str, u32)]) -> u32 {
        let mut tail = Vec::new();
        for (name, value) in values {
            tail.extend([self.string(name), *value]);
        }
        self.ty("e", Kind::Enum, values.len() as u32, size, &tail)
    }
}
