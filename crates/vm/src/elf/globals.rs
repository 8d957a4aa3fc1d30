//! Global variables of an object, set before it is loaded.

use bpfarray_core::btf::Def;

use super::Object;

/// Why a global variable cannot be set. The variants stand in the order in which they are checked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GlobalError {
    /// No section of variables has one of this name, as far as the object's types tell.
    #[error("there is no global variable '{0}'")]
    NotFound(String),
    /// The variable has another size.
    #[error("global variable '{name}' has {size} bytes, not {given}")]
    Size {
        /// The variable's name.
        name: String,
        /// Its bytes.
        size: u32,
        /// The bytes given.
        given: usize,
    },
}

impl Object {
    /// Sets a global variable, `const` ones included, to the bytes it is to have when the object is loaded.
    ///
    /// ```
    /// use bpfarray_vm::{Context, LoadOptions, Object, ProgType};
    ///
    /// let mut object = Object::parse(&std::fs::read("../../examples/packet_count.bpf.o")?)?;
    /// object.set_global("max_frame_bytes", &60_u32.to_le_bytes())?;
    /// let program = object.load(&LoadOptions::default())?.program("count_packets")?;
    /// let mut context = Context::new(ProgType::XDP, &[0; 64], None)?;
    /// assert_eq!(program.run(&mut context)?.retval(), 1); // XDP_DROP
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The variants of [`GlobalError`] in their order.
    pub fn set_global(&mut self, name: &str, bytes: &[u8]) -> Result<(), GlobalError> {
        let not_found = || GlobalError::NotFound(name.to_owned());
        let (section, offset, size) = self.global(name).ok_or_else(not_found)?;
        if bytes.len() != size as usize {
            return Err(GlobalError::Size { name: name.to_owned(), size, given: bytes.len() });
        }
        let map = self.maps.iter_mut().find(|map| map.is_data() && map.name == section);
        let map = map.ok_or_else(not_found)?;
        let place = offset as usize..offset as usize + bytes.len();
        if place.end > map.attr.value_size as usize {
            return Err(not_found());
        }
        map.initial.resize(map.initial.len().max(place.end), 0);
        map.initial[place].copy_from_slice(bytes);
        Ok(())
    }

    /// Section, byte offset and bytes of a variable.
    fn global(&self, name: &str) -> Option<(String, u32, u32)> {
        let btf = self.btf.as_ref()?;
        btf.types().find_map(|ty| match ty.def {
            Def::Datasec(section) => section
                .vars()
                .find(|var| btf.get(var.var).is_ok_and(|ty| ty.name == name))
                .map(|var| (ty.name.to_owned(), var.offset, var.size)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Object {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/packet_count.bpf.o");
        Object::parse(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn constants_and_variables_without_initial_value_can_be_set() {
        let mut object = example();
        object.set_global("first_dynamic_port", &[1, 2]).unwrap();
        object.set_global("dropped", &[7; 16]).unwrap();
        assert_eq!(object.map(".rodata").unwrap().initial[2..], [1, 2]);
        assert_eq!(object.map(".bss").unwrap().initial, [7; 16]);
    }

    #[test]
    fn names_and_sizes_must_be_right() {
        let mut object = example();
        let error = object.set_global("nothing", &[]).unwrap_err();
        assert_eq!(error, GlobalError::NotFound("nothing".into()));
        let error = object.set_global("max_frame_bytes", &[0; 2]).unwrap_err();
        assert_eq!(error.to_string(), "global variable 'max_frame_bytes' has 4 bytes, not 2");
    }
}
