//! Calls as text, as strace shows them.

use std::fmt::Write;

use bpfarray_core::Errno;
use bpfarray_core::attr::MapType;

use crate::attr::{ATTR_SIZE, Attr};
use crate::command::command_name;
use crate::kernel::Kernel;
use crate::user::UserAddr;

/// How a field is shown.
#[derive(Copy, Clone)]
enum Show {
    MapType,
    Number,
    Flags,
    Wide,
    Pointer,
    Name,
    Path,
}

type Field = (&'static str, usize, Show);

const ELEM: &[Field] = &[
    ("map_fd", 0, Show::Number),
    ("key", 8, Show::Pointer),
    ("value", 16, Show::Pointer),
    ("flags", 24, Show::Wide),
];
const BATCH: &[Field] = &[
    ("in_batch", 0, Show::Pointer),
    ("out_batch", 8, Show::Pointer),
    ("keys", 16, Show::Pointer),
    ("values", 24, Show::Pointer),
    ("count", 32, Show::Number),
    ("map_fd", 36, Show::Number),
    ("elem_flags", 40, Show::Wide),
    ("flags", 48, Show::Wide),
];
const CREATE: &[Field] = &[
    ("map_type", 0, Show::MapType),
    ("key_size", 4, Show::Number),
    ("value_size", 8, Show::Number),
    ("max_entries", 12, Show::Number),
    ("map_flags", 16, Show::Flags),
    ("inner_map_fd", 20, Show::Number),
    ("numa_node", 24, Show::Number),
    ("map_name", 28, Show::Name),
    ("map_ifindex", 44, Show::Number),
    ("btf_fd", 48, Show::Number),
    ("btf_key_type_id", 52, Show::Number),
    ("btf_value_type_id", 56, Show::Number),
];
const PROG_LOAD: &[Field] = &[
    ("prog_type", 0, Show::Number),
    ("insn_cnt", 4, Show::Number),
    ("insns", 8, Show::Pointer),
    ("license", 16, Show::Pointer),
    ("log_level", 24, Show::Number),
    ("log_size", 28, Show::Number),
    ("log_buf", 32, Show::Pointer),
    ("prog_flags", 44, Show::Flags),
    ("prog_name", 48, Show::Name),
    ("expected_attach_type", 68, Show::Number),
    ("prog_btf_fd", 72, Show::Number),
    ("attach_btf_id", 108, Show::Number),
];
const TEST_RUN: &[Field] = &[
    ("prog_fd", 0, Show::Number),
    ("data_size_in", 8, Show::Number),
    ("data_size_out", 12, Show::Number),
    ("data_in", 16, Show::Pointer),
    ("data_out", 24, Show::Pointer),
    ("repeat", 32, Show::Number),
    ("ctx_size_in", 40, Show::Number),
    ("ctx_size_out", 44, Show::Number),
    ("ctx_in", 48, Show::Pointer),
    ("ctx_out", 56, Show::Pointer),
    ("flags", 64, Show::Flags),
    ("cpu", 68, Show::Number),
];
const BIND_MAP: &[Field] =
    &[("prog_fd", 0, Show::Number), ("map_fd", 4, Show::Number), ("flags", 8, Show::Flags)];
const LINK_CREATE: &[Field] = &[
    ("prog_fd", 0, Show::Number),
    ("target_fd", 4, Show::Number),
    ("attach_type", 8, Show::Number),
    ("flags", 12, Show::Flags),
    ("iter_info", 16, Show::Pointer),
    ("iter_info_len", 24, Show::Number),
];
const LINK_UPDATE: &[Field] = &[
    ("link_fd", 0, Show::Number),
    ("new_prog_fd", 4, Show::Number),
    ("flags", 8, Show::Flags),
    ("old_prog_fd", 12, Show::Number),
];
const LINK: &[Field] = &[("link_fd", 0, Show::Number), ("flags", 4, Show::Flags)];
const ENABLE_STATS: &[Field] = &[("type", 0, Show::Number)];
const OBJ: &[Field] = &[
    ("pathname", 0, Show::Path),
    ("bpf_fd", 8, Show::Number),
    ("file_flags", 12, Show::Flags),
    ("path_fd", 16, Show::Number),
];
const NEXT_ID: &[Field] = &[("start_id", 0, Show::Number)];
const BY_ID: &[Field] = &[("id", 0, Show::Number), ("open_flags", 8, Show::Flags)];
const INFO: &[Field] =
    &[("bpf_fd", 0, Show::Number), ("info_len", 4, Show::Number), ("info", 8, Show::Pointer)];
const BTF: &[Field] = &[
    ("btf", 0, Show::Pointer),
    ("btf_log_buf", 8, Show::Pointer),
    ("btf_size", 16, Show::Number),
    ("btf_log_size", 20, Show::Number),
    ("btf_log_level", 24, Show::Number),
];

const fn fields(cmd: u32) -> &'static [Field] {
    match cmd {
        0 => CREATE,
        1 | 2 | 21 => ELEM,
        3 | 4 => ELEM.split_at(3).0,
        5 => PROG_LOAD,
        6 | 7 => OBJ,
        10 => TEST_RUN,
        11 | 12 | 23 | 31 => NEXT_ID,
        13 | 14 | 19 | 30 => BY_ID,
        15 => INFO,
        18 => BTF,
        22 => ELEM.split_at(1).0,
        24..=27 => BATCH,
        28 => LINK_CREATE,
        29 => LINK_UPDATE,
        32 => ENABLE_STATS,
        33 | 34 => LINK,
        35 => BIND_MAP,
        _ => &[],
    }
}

/// A call that [`Kernel::describe`] has shown, with its result and the end of the line.
pub fn line(shown: &str, result: Result<i32, Errno>) -> String {
    match result {
        Ok(value) => format!("{shown} = {value}\n"),
        Err(errno) => format!("{shown} = -1 {errno}\n"),
    }
}

impl Kernel {
    /// A call as text: the command and those fields of its attribute block that are not zero.
    pub fn describe(&self, cmd: u32, attr: u64, size: u32) -> String {
        let command = match command_name(cmd) {
            Some(name) => format!("BPF_{name}"),
            None => format!("{cmd}"),
        };
        let known = size.min(ATTR_SIZE as u32);
        let Ok(block) = Attr::copy(&self.user, UserAddr(attr), known) else {
            return format!("bpf({command}, {attr:#x}, {size})");
        };
        let shown: Vec<String> =
            fields(cmd).iter().filter_map(|field| self.show(&block, *field)).collect();
        format!("bpf({command}, {{{}}}, {size})", shown.join(", "))
    }

    fn show(&self, block: &Attr, (name, offset, show): Field) -> Option<String> {
        let mut text = format!("{name}=");
        let number = block.u32(offset);
        match show {
            // Descriptor 0 and command fields that come first are worth a word.
            Show::Number if number != 0 || offset == 0 => write!(text, "{}", number.cast_signed()),
            Show::Flags if number != 0 => write!(text, "{number:#x}"),
            Show::Wide if block.u64(offset) != 0 => write!(text, "{:#x}", block.u64(offset)),
            Show::Pointer if block.u64(offset) != 0 => write!(text, "{:#x}", block.u64(offset)),
            Show::MapType => match MapType(number).name() {
                Some(name) => write!(text, "BPF_MAP_TYPE_{}", name.to_uppercase()),
                None => write!(text, "{number}"),
            },
            Show::Name => {
                let name = block.field::<16>(offset);
                let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
                if end == 0 {
                    return None;
                }
                write!(text, "\"{}\"", name[..end].escape_ascii())
            }
            Show::Path => {
                let too_long = Errno::E2BIG;
                match self.user.read_string(block.pointer(offset), 4096, too_long) {
                    Ok(path) => write!(text, "\"{}\"", path.escape_ascii()),
                    Err(_) => write!(text, "{:#x}", block.u64(offset)),
                }
            }
            Show::Number | Show::Flags | Show::Wide | Show::Pointer => return None,
        }
        .ok()?;
        Some(text)
    }
}
