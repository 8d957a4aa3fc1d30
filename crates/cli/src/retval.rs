//! What return values are called.

use bpfarray_vm::prog_type::ProgType;

/// The name that Linux's headers give to a return value of programs of this type.
pub(crate) fn name(prog_type: ProgType, value: u32) -> Option<&'static str> {
    let names: &[(i32, &str)] = match prog_type {
        ProgType::XDP => &[
            (0, "XDP_ABORTED"),
            (1, "XDP_DROP"),
            (2, "XDP_PASS"),
            (3, "XDP_TX"),
            (4, "XDP_REDIRECT"),
        ],
        ProgType::SCHED_CLS | ProgType::SCHED_ACT => &[
            (-1, "TC_ACT_UNSPEC"),
            (0, "TC_ACT_OK"),
            (1, "TC_ACT_RECLASSIFY"),
            (2, "TC_ACT_SHOT"),
            (3, "TC_ACT_PIPE"),
            (4, "TC_ACT_STOLEN"),
            (5, "TC_ACT_QUEUED"),
            (6, "TC_ACT_REPEAT"),
            (7, "TC_ACT_REDIRECT"),
            (8, "TC_ACT_TRAP"),
        ],
        ProgType::LWT_IN | ProgType::LWT_OUT | ProgType::LWT_XMIT | ProgType::LWT_SEG6LOCAL => {
            &[(0, "BPF_OK"), (2, "BPF_DROP"), (7, "BPF_REDIRECT"), (128, "BPF_LWT_REROUTE")]
        }
        ProgType::FLOW_DISSECTOR => {
            &[(0, "BPF_OK"), (2, "BPF_DROP"), (129, "BPF_FLOW_DISSECTOR_CONTINUE")]
        }
        ProgType::SK_SKB | ProgType::SK_MSG | ProgType::SK_REUSEPORT | ProgType::SK_LOOKUP => {
            &[(0, "SK_DROP"), (1, "SK_PASS")]
        }
        ProgType::NETFILTER => &[(0, "NF_DROP"), (1, "NF_ACCEPT")],
        _ => &[],
    };
    names.iter().find(|(number, _)| *number as u32 == value).map(|(_, name)| *name)
}

/// What a return value means, for people: its name, or what a program's host does with the number.
pub(crate) fn meaning(prog_type: ProgType, value: u32) -> String {
    match (name(prog_type, value), prog_type) {
        (Some(name), _) => name.to_owned(),
        (None, ProgType::SOCKET_FILTER) if value == 0 => "packet dropped".to_owned(),
        (None, ProgType::SOCKET_FILTER) => format!("at most {value} bytes kept"),
        (None, _) => String::new(),
    }
}
