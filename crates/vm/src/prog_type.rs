//! What kind of program a section holds: program types, attach types and libbpf's section names.

/// A program type by its Linux number. An open set: numbers without a name here stay representable.
///
/// ```
/// use bpfarray_vm::prog_type::{ProgType, section_def};
/// assert_eq!(ProgType::XDP.name(), Some("xdp"));
/// assert_eq!(section_def("tp/syscalls/sys_enter_openat").unwrap().prog_type, ProgType::TRACEPOINT);
/// assert!(section_def("xdp_pass").is_none());
/// ```
///
/// # Kernel
/// `enum bpf_prog_type`
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "bpf_prog_type")]
pub struct ProgType(pub u32);

/// How a program expects to be attached, by its Linux number. An open set.
///
/// # Kernel
/// `enum bpf_attach_type`
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "bpf_attach_type")]
pub struct AttachType(pub u32);

macro_rules! numbers {
    ($type:ident, $unknown:literal: $($value:literal $name:ident $label:literal,)*) => {
        #[allow(missing_docs)]
        impl $type {
            $(pub const $name: Self = Self($value);)*

            /// The name bpftool prints, or `None` for an unknown number.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($label),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!($unknown, " {}"), self.0),
                }
            }
        }
    };
}

numbers! { ProgType, "program type":
    1 SOCKET_FILTER "socket_filter",
    2 KPROBE "kprobe",
    3 SCHED_CLS "sched_cls",
    4 SCHED_ACT "sched_act",
    5 TRACEPOINT "tracepoint",
    6 XDP "xdp",
    7 PERF_EVENT "perf_event",
    8 CGROUP_SKB "cgroup_skb",
    9 CGROUP_SOCK "cgroup_sock",
    10 LWT_IN "lwt_in",
    11 LWT_OUT "lwt_out",
    12 LWT_XMIT "lwt_xmit",
    13 SOCK_OPS "sock_ops",
    14 SK_SKB "sk_skb",
    15 CGROUP_DEVICE "cgroup_device",
    16 SK_MSG "sk_msg",
    17 RAW_TRACEPOINT "raw_tracepoint",
    18 CGROUP_SOCK_ADDR "cgroup_sock_addr",
    19 LWT_SEG6LOCAL "lwt_seg6local",
    20 LIRC_MODE2 "lirc_mode2",
    21 SK_REUSEPORT "sk_reuseport",
    22 FLOW_DISSECTOR "flow_dissector",
    23 CGROUP_SYSCTL "cgroup_sysctl",
    24 RAW_TRACEPOINT_WRITABLE "raw_tracepoint_writable",
    25 CGROUP_SOCKOPT "cgroup_sockopt",
    26 TRACING "tracing",
    27 STRUCT_OPS "struct_ops",
    28 EXT "ext",
    29 LSM "lsm",
    30 SK_LOOKUP "sk_lookup",
    31 SYSCALL "syscall",
    32 NETFILTER "netfilter",
}

numbers! { AttachType, "attach type":
    0 CGROUP_INET_INGRESS "cgroup_inet_ingress",
    1 CGROUP_INET_EGRESS "cgroup_inet_egress",
    2 CGROUP_INET_SOCK_CREATE "cgroup_inet_sock_create",
    3 CGROUP_SOCK_OPS "cgroup_sock_ops",
    4 SK_SKB_STREAM_PARSER "sk_skb_stream_parser",
    5 SK_SKB_STREAM_VERDICT "sk_skb_stream_verdict",
    6 CGROUP_DEVICE "cgroup_device",
    7 SK_MSG_VERDICT "sk_msg_verdict",
    8 CGROUP_INET4_BIND "cgroup_inet4_bind",
    9 CGROUP_INET6_BIND "cgroup_inet6_bind",
    10 CGROUP_INET4_CONNECT "cgroup_inet4_connect",
    11 CGROUP_INET6_CONNECT "cgroup_inet6_connect",
    12 CGROUP_INET4_POST_BIND "cgroup_inet4_post_bind",
    13 CGROUP_INET6_POST_BIND "cgroup_inet6_post_bind",
    14 CGROUP_UDP4_SENDMSG "cgroup_udp4_sendmsg",
    15 CGROUP_UDP6_SENDMSG "cgroup_udp6_sendmsg",
    16 LIRC_MODE2 "lirc_mode2",
    17 FLOW_DISSECTOR "flow_dissector",
    18 CGROUP_SYSCTL "cgroup_sysctl",
    19 CGROUP_UDP4_RECVMSG "cgroup_udp4_recvmsg",
    20 CGROUP_UDP6_RECVMSG "cgroup_udp6_recvmsg",
    21 CGROUP_GETSOCKOPT "cgroup_getsockopt",
    22 CGROUP_SETSOCKOPT "cgroup_setsockopt",
    23 TRACE_RAW_TP "trace_raw_tp",
    24 TRACE_FENTRY "trace_fentry",
    25 TRACE_FEXIT "trace_fexit",
    26 MODIFY_RETURN "modify_return",
    27 LSM_MAC "lsm_mac",
    28 TRACE_ITER "trace_iter",
    29 CGROUP_INET4_GETPEERNAME "cgroup_inet4_getpeername",
    30 CGROUP_INET6_GETPEERNAME "cgroup_inet6_getpeername",
    31 CGROUP_INET4_GETSOCKNAME "cgroup_inet4_getsockname",
    32 CGROUP_INET6_GETSOCKNAME "cgroup_inet6_getsockname",
    33 XDP_DEVMAP "xdp_devmap",
    34 CGROUP_INET_SOCK_RELEASE "cgroup_inet_sock_release",
    35 XDP_CPUMAP "xdp_cpumap",
    36 SK_LOOKUP "sk_lookup",
    37 XDP "xdp",
    38 SK_SKB_VERDICT "sk_skb_verdict",
    39 SK_REUSEPORT_SELECT "sk_reuseport_select",
    40 SK_REUSEPORT_SELECT_OR_MIGRATE "sk_reuseport_select_or_migrate",
    41 PERF_EVENT "perf_event",
    42 TRACE_KPROBE_MULTI "trace_kprobe_multi",
    43 LSM_CGROUP "lsm_cgroup",
    44 STRUCT_OPS "struct_ops",
    45 NETFILTER "netfilter",
    46 TCX_INGRESS "tcx_ingress",
    47 TCX_EGRESS "tcx_egress",
    48 TRACE_UPROBE_MULTI "trace_uprobe_multi",
    49 CGROUP_UNIX_CONNECT "cgroup_unix_connect",
    50 CGROUP_UNIX_SENDMSG "cgroup_unix_sendmsg",
    51 CGROUP_UNIX_RECVMSG "cgroup_unix_recvmsg",
    52 CGROUP_UNIX_GETPEERNAME "cgroup_unix_getpeername",
    53 CGROUP_UNIX_GETSOCKNAME "cgroup_unix_getsockname",
    54 NETKIT_PRIMARY "netkit_primary",
    55 NETKIT_PEER "netkit_peer",
    56 TRACE_KPROBE_SESSION "trace_kprobe_session",
    57 TRACE_UPROBE_SESSION "trace_uprobe_session",
    58 TRACE_FSESSION "trace_fsession",
}

/// What a section name says about the programs in it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SectionDef {
    /// The section's name, or the part before `/TARGET`.
    pub name: &'static str,
    /// Whether `/TARGET` may follow the name.
    pub takes_target: bool,
    /// Type of the programs.
    pub prog_type: ProgType,
    /// How the programs expect to be attached, where their type asks for it.
    pub expected_attach_type: Option<AttachType>,
    /// Whether the programs may sleep.
    pub sleepable: bool,
    /// Whether XDP programs accept packets in several buffers.
    pub xdp_has_frags: bool,
}

impl SectionDef {
    const fn new(name: &'static str, prog_type: ProgType) -> Self {
        Self {
            name,
            takes_target: false,
            prog_type,
            expected_attach_type: None,
            sleepable: false,
            xdp_has_frags: false,
        }
    }

    const fn attach(self, expected: AttachType) -> Self {
        Self { expected_attach_type: Some(expected), ..self }
    }

    const fn target(self) -> Self {
        Self { takes_target: true, ..self }
    }

    const fn sleepable(self) -> Self {
        Self { sleepable: true, ..self }
    }

    const fn frags(self) -> Self {
        Self { xdp_has_frags: true, ..self }
    }

    fn matches(&self, section: &str) -> bool {
        match section.strip_prefix(self.name) {
            Some("") => true,
            Some(rest) => self.takes_target && rest.starts_with('/'),
            None => false,
        }
    }
}

/// What libbpf makes of a section name, without the `?` that marks programs not loaded by default.
///
/// `None` for a name it does not know: such programs have no type.
pub fn section_def(section: &str) -> Option<&'static SectionDef> {
    SECTION_DEFS.iter().find(|def| def.matches(section))
}

type P = ProgType;
type A = AttachType;

const fn def(name: &'static str, prog_type: ProgType) -> SectionDef {
    SectionDef::new(name, prog_type)
}

/// Every section name libbpf 1.7 knows.
pub const SECTION_DEFS: &[SectionDef] = &[
    def("socket", P::SOCKET_FILTER),
    def("sk_reuseport/migrate", P::SK_REUSEPORT).attach(A::SK_REUSEPORT_SELECT_OR_MIGRATE),
    def("sk_reuseport", P::SK_REUSEPORT).attach(A::SK_REUSEPORT_SELECT),
    def("kprobe", P::KPROBE).target(),
    def("kretprobe", P::KPROBE).target(),
    def("uprobe", P::KPROBE).target(),
    def("uprobe.s", P::KPROBE).target().sleepable(),
    def("uretprobe", P::KPROBE).target(),
    def("uretprobe.s", P::KPROBE).target().sleepable(),
    def("kprobe.multi", P::KPROBE).target().attach(A::TRACE_KPROBE_MULTI),
    def("kretprobe.multi", P::KPROBE).target().attach(A::TRACE_KPROBE_MULTI),
    def("kprobe.session", P::KPROBE).target().attach(A::TRACE_KPROBE_SESSION),
    def("uprobe.multi", P::KPROBE).target().attach(A::TRACE_UPROBE_MULTI),
    def("uprobe.multi.s", P::KPROBE).target().attach(A::TRACE_UPROBE_MULTI).sleepable(),
    def("uretprobe.multi", P::KPROBE).target().attach(A::TRACE_UPROBE_MULTI),
    def("uretprobe.multi.s", P::KPROBE).target().attach(A::TRACE_UPROBE_MULTI).sleepable(),
    def("uprobe.session", P::KPROBE).target().attach(A::TRACE_UPROBE_SESSION),
    def("uprobe.session.s", P::KPROBE).target().attach(A::TRACE_UPROBE_SESSION).sleepable(),
    def("ksyscall", P::KPROBE).target(),
    def("kretsyscall", P::KPROBE).target(),
    def("usdt", P::KPROBE).target(),
    def("usdt.s", P::KPROBE).target().sleepable(),
    def("tc/ingress", P::SCHED_CLS).attach(A::TCX_INGRESS),
    def("tc/egress", P::SCHED_CLS).attach(A::TCX_EGRESS),
    def("tcx/ingress", P::SCHED_CLS).attach(A::TCX_INGRESS),
    def("tcx/egress", P::SCHED_CLS).attach(A::TCX_EGRESS),
    def("tc", P::SCHED_CLS),
    def("classifier", P::SCHED_CLS),
    def("action", P::SCHED_ACT),
    def("netkit/primary", P::SCHED_CLS).attach(A::NETKIT_PRIMARY),
    def("netkit/peer", P::SCHED_CLS).attach(A::NETKIT_PEER),
    def("tracepoint", P::TRACEPOINT).target(),
    def("tp", P::TRACEPOINT).target(),
    def("raw_tracepoint", P::RAW_TRACEPOINT).target(),
    def("raw_tp", P::RAW_TRACEPOINT).target(),
    def("raw_tracepoint.w", P::RAW_TRACEPOINT_WRITABLE).target(),
    def("raw_tp.w", P::RAW_TRACEPOINT_WRITABLE).target(),
    def("tp_btf", P::TRACING).target().attach(A::TRACE_RAW_TP),
    def("fentry", P::TRACING).target().attach(A::TRACE_FENTRY),
    def("fentry.s", P::TRACING).target().attach(A::TRACE_FENTRY).sleepable(),
    def("fmod_ret", P::TRACING).target().attach(A::MODIFY_RETURN),
    def("fmod_ret.s", P::TRACING).target().attach(A::MODIFY_RETURN).sleepable(),
    def("fexit", P::TRACING).target().attach(A::TRACE_FEXIT),
    def("fexit.s", P::TRACING).target().attach(A::TRACE_FEXIT).sleepable(),
    def("fsession", P::TRACING).target().attach(A::TRACE_FSESSION),
    def("fsession.s", P::TRACING).target().attach(A::TRACE_FSESSION).sleepable(),
    def("freplace", P::EXT).target(),
    def("lsm", P::LSM).target().attach(A::LSM_MAC),
    def("lsm.s", P::LSM).target().attach(A::LSM_MAC).sleepable(),
    def("lsm_cgroup", P::LSM).target().attach(A::LSM_CGROUP),
    def("iter", P::TRACING).target().attach(A::TRACE_ITER),
    def("iter.s", P::TRACING).target().attach(A::TRACE_ITER).sleepable(),
    def("syscall", P::SYSCALL).sleepable(),
    def("xdp.frags/devmap", P::XDP).attach(A::XDP_DEVMAP).frags(),
    def("xdp/devmap", P::XDP).attach(A::XDP_DEVMAP),
    def("xdp.frags/cpumap", P::XDP).attach(A::XDP_CPUMAP).frags(),
    def("xdp/cpumap", P::XDP).attach(A::XDP_CPUMAP),
    def("xdp.frags", P::XDP).attach(A::XDP).frags(),
    def("xdp", P::XDP).attach(A::XDP),
    def("perf_event", P::PERF_EVENT),
    def("lwt_in", P::LWT_IN),
    def("lwt_out", P::LWT_OUT),
    def("lwt_xmit", P::LWT_XMIT),
    def("lwt_seg6local", P::LWT_SEG6LOCAL),
    def("sockops", P::SOCK_OPS).attach(A::CGROUP_SOCK_OPS),
    def("sk_skb/stream_parser", P::SK_SKB).attach(A::SK_SKB_STREAM_PARSER),
    def("sk_skb/stream_verdict", P::SK_SKB).attach(A::SK_SKB_STREAM_VERDICT),
    def("sk_skb/verdict", P::SK_SKB).attach(A::SK_SKB_VERDICT),
    def("sk_skb", P::SK_SKB),
    def("sk_msg", P::SK_MSG).attach(A::SK_MSG_VERDICT),
    def("lirc_mode2", P::LIRC_MODE2).attach(A::LIRC_MODE2),
    def("flow_dissector", P::FLOW_DISSECTOR).attach(A::FLOW_DISSECTOR),
    def("cgroup_skb/ingress", P::CGROUP_SKB).attach(A::CGROUP_INET_INGRESS),
    def("cgroup_skb/egress", P::CGROUP_SKB).attach(A::CGROUP_INET_EGRESS),
    def("cgroup/skb", P::CGROUP_SKB),
    def("cgroup/sock_create", P::CGROUP_SOCK).attach(A::CGROUP_INET_SOCK_CREATE),
    def("cgroup/sock_release", P::CGROUP_SOCK).attach(A::CGROUP_INET_SOCK_RELEASE),
    def("cgroup/sock", P::CGROUP_SOCK).attach(A::CGROUP_INET_SOCK_CREATE),
    def("cgroup/post_bind4", P::CGROUP_SOCK).attach(A::CGROUP_INET4_POST_BIND),
    def("cgroup/post_bind6", P::CGROUP_SOCK).attach(A::CGROUP_INET6_POST_BIND),
    def("cgroup/bind4", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_INET4_BIND),
    def("cgroup/bind6", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_INET6_BIND),
    def("cgroup/connect4", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_INET4_CONNECT),
    def("cgroup/connect6", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_INET6_CONNECT),
    def("cgroup/connect_unix", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_UNIX_CONNECT),
    def("cgroup/sendmsg4", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_UDP4_SENDMSG),
    def("cgroup/sendmsg6", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_UDP6_SENDMSG),
    def("cgroup/sendmsg_unix", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_UNIX_SENDMSG),
    def("cgroup/recvmsg4", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_UDP4_RECVMSG),
    def("cgroup/recvmsg6", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_UDP6_RECVMSG),
    def("cgroup/recvmsg_unix", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_UNIX_RECVMSG),
    def("cgroup/getpeername4", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_INET4_GETPEERNAME),
    def("cgroup/getpeername6", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_INET6_GETPEERNAME),
    def("cgroup/getpeername_unix", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_UNIX_GETPEERNAME),
    def("cgroup/getsockname4", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_INET4_GETSOCKNAME),
    def("cgroup/getsockname6", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_INET6_GETSOCKNAME),
    def("cgroup/getsockname_unix", P::CGROUP_SOCK_ADDR).attach(A::CGROUP_UNIX_GETSOCKNAME),
    def("cgroup/sysctl", P::CGROUP_SYSCTL).attach(A::CGROUP_SYSCTL),
    def("cgroup/getsockopt", P::CGROUP_SOCKOPT).attach(A::CGROUP_GETSOCKOPT),
    def("cgroup/setsockopt", P::CGROUP_SOCKOPT).attach(A::CGROUP_SETSOCKOPT),
    def("cgroup/dev", P::CGROUP_DEVICE).attach(A::CGROUP_DEVICE),
    def("struct_ops", P::STRUCT_OPS).target(),
    def("struct_ops.s", P::STRUCT_OPS).target().sleepable(),
    def("sk_lookup", P::SK_LOOKUP).attach(A::SK_LOOKUP),
    def("netfilter", P::NETFILTER).attach(A::NETFILTER),
];

/// What a program must return, if that is limited.
///
/// # Kernel
/// `check_return_code`
pub(crate) fn return_range(prog_type: ProgType, attach_type: AttachType) -> Option<(i64, i64)> {
    use {AttachType as A, ProgType as P};
    match (prog_type, attach_type) {
        // Programs that only watch, or change names.
        (
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UDP4_RECVMSG
            | A::CGROUP_UDP6_RECVMSG
            | A::CGROUP_UNIX_RECVMSG
            | A::CGROUP_INET4_GETPEERNAME
            | A::CGROUP_INET6_GETPEERNAME
            | A::CGROUP_UNIX_GETPEERNAME
            | A::CGROUP_INET4_GETSOCKNAME
            | A::CGROUP_INET6_GETSOCKNAME
            | A::CGROUP_UNIX_GETSOCKNAME,
        ) => Some((1, 1)),
        (P::CGROUP_SOCK_ADDR, A::CGROUP_INET4_BIND | A::CGROUP_INET6_BIND) => Some((0, 3)),
        (P::CGROUP_SKB, A::CGROUP_INET_EGRESS) => Some((0, 3)),
        (P::CGROUP_SKB | P::CGROUP_SOCK | P::CGROUP_SOCK_ADDR | P::CGROUP_DEVICE, _) => {
            Some((0, 1))
        }
        (P::CGROUP_SYSCTL | P::CGROUP_SOCKOPT | P::SOCK_OPS, _) => Some((0, 1)),
        (P::SK_LOOKUP | P::NETFILTER, _) => Some((0, 1)),
        (_, A::TRACE_ITER) => Some((0, 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_follow_only_the_sections_that_take_one() {
        let def = section_def("kprobe/do_unlinkat").unwrap();
        assert_eq!((def.prog_type, def.expected_attach_type), (P::KPROBE, None));
        assert_eq!(section_def("kprobe").unwrap(), def);
        for unknown in
            ["", "/", "kprobefoo", "xdp/foo", "xdp_drop", "XDP", "socket1", "tc/", "?xdp"]
        {
            assert_eq!(section_def(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn longer_names_win_over_their_prefixes() {
        let attach = |section| section_def(section).unwrap().expected_attach_type;
        assert_eq!(attach("xdp/cpumap"), Some(A::XDP_CPUMAP));
        assert_eq!(attach("tc/egress"), Some(A::TCX_EGRESS));
        assert_eq!(attach("uprobe.multi.s//bin/true:main"), Some(A::TRACE_UPROBE_MULTI));
        assert!(section_def("uprobe.multi.s//bin/true:main").unwrap().sleepable);
        assert!(!section_def("xdp").unwrap().xdp_has_frags);
        assert!(section_def("xdp.frags/devmap").unwrap().xdp_has_frags);
    }

    #[test]
    fn no_section_is_shadowed_by_an_earlier_one() {
        for def in SECTION_DEFS {
            assert_eq!(section_def(def.name), Some(def));
        }
    }

    #[test]
    fn unknown_numbers_are_shown_as_numbers() {
        assert_eq!(ProgType(99).to_string(), "program type 99");
        assert_eq!(AttachType::XDP.to_string(), "xdp");
    }
}
