//! Requests for maps: who asks, for what, and what is known of the map that came of it.

use std::fmt;

use crate::create::MapCreate;
use crate::kernel::Kernel;
use crate::rng::Rng;

/// Who creates a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creator {
    /// Has every capability: programs' lookups in the map go unmasked.
    Trusted,
    /// Has neither CAP_PERFMON nor CAP_SYS_ADMIN: the map is hardened against Spectre v1.
    Masked,
    /// Has no CAP_BPF either.
    Nobody,
}

impl Creator {
    const ALL: [(Self, &str); 3] =
        [(Self::Trusted, "trusted"), (Self::Masked, "masked"), (Self::Nobody, "nobody")];

    fn parse(s: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == s).map(|(creator, _)| *creator)
    }

    /// The same for our crates.
    pub fn to_core(self) -> bpfarray_core::attr::Creator<'static> {
        bpfarray_core::attr::Creator {
            may_create: self != Self::Nobody,
            bypass_spec_v1: self == Self::Trusted,
            online_nodes: &[0],
            rules: bpfarray_core::attr::Rules::Linux6_18,
            btf: None,
        }
    }
}

impl fmt::Display for Creator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(creator, _)| creator == self).map_or("", |(_, s)| s))
    }
}

/// A map somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub creator: Creator,
    /// For what. A descriptor of an inner map in it stands for no open file.
    pub create: MapCreate,
    /// The map whose descriptor is given as that of the inner map, created just for this.
    pub inner: Option<Box<Request>>,
}

impl Request {
    /// A request for a map without an inner map.
    pub fn new(creator: Creator, create: MapCreate) -> Self {
        Self { creator, create, inner: None }
    }

    /// The same with an inner map.
    #[must_use]
    pub fn with_inner(mut self, inner: Self) -> Self {
        self.create.inner_map_fd = 0;
        self.inner = Some(inner.into());
        self
    }

    /// The request of a seed, which may be refused.
    pub fn random(kernel: Kernel, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let creator = match rng.below(10) {
            0 | 1 if kernel.restricts_creation() => Creator::Nobody,
            2..6 => Creator::Masked,
            _ => Creator::Trusted,
        };
        let request = Self::new(creator, MapCreate::random_attr(&mut rng, creator));
        // Other types than ARRAY_OF_MAPS don't look at it.
        let is_array_of_maps = request.create.map_type == MapCreate::ARRAY_OF_MAPS;
        if rng.percent(if is_array_of_maps { 85 } else { 10 }) {
            request.with_inner(Self::random_inner(&mut rng))
        } else {
            request
        }
    }

    /// An inner map of any type; it can be created, but is not always one that can be held.
    fn random_inner(rng: &mut Rng) -> Self {
        let creator = rng.pick(&[Creator::Trusted, Creator::Masked]);
        let map_type = rng.pick(&MapCreate::TYPES);
        let mut create = MapCreate::random_shape(rng, map_type);
        create.exclusive = rng.percent(10);
        let inner = Self::new(creator, create);
        if map_type == MapCreate::ARRAY_OF_MAPS {
            inner.with_inner(Self::new(creator, MapCreate::array(MapCreate::ARRAY, 4, 1)))
        } else {
            inner
        }
    }

    /// The request that `Display` wrote.
    pub fn parse(line: &str) -> Option<Self> {
        let (line, inner) = match line.split_once(" inner ") {
            Some((line, inner)) => (line, Some(Self::parse(inner)?.into())),
            None => (line, None),
        };
        let (creator, fields) = line.strip_prefix("create ")?.split_once(' ')?;
        Some(Self { creator: Creator::parse(creator)?, create: MapCreate::parse(fields)?, inner })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "create {} {}", self.creator, self.create)?;
        self.inner.iter().try_for_each(|inner| write!(f, " inner {inner}"))
    }
}

/// What is known of a map that was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Flags that stay with the map.
    pub map_flags: u32,
    /// Bytes it is charged for.
    pub memlock: u64,
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flags {:#x} memlock {}", self.map_flags, self.memlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_back_as_they_were_written() {
        let mut rng = Rng::new(1);
        for _ in 0..1000 {
            let creator = rng.pick(&Creator::ALL).0;
            let request = Request::new(creator, MapCreate::random_attr(&mut rng, creator));
            assert_eq!(Request::parse(&request.to_string()), Some(request.clone()));
            let request = request.with_inner(Request::random_inner(&mut rng));
            assert_eq!(Request::parse(&request.to_string()), Some(request));
        }
    }
}
