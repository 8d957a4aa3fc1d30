//! Ids and names of the kernel's helper functions, as of Linux 6.18.
//!
//! Ids never change their meaning. Functions added since the list was closed are called by BTF id instead.

/// Id of `bpf_map_lookup_elem`.
#[doc(alias = "BPF_FUNC_map_lookup_elem")]
pub const MAP_LOOKUP_ELEM: u32 = 1;
/// Id of `bpf_map_update_elem`.
#[doc(alias = "BPF_FUNC_map_update_elem")]
pub const MAP_UPDATE_ELEM: u32 = 2;
/// Id of `bpf_map_delete_elem`.
#[doc(alias = "BPF_FUNC_map_delete_elem")]
pub const MAP_DELETE_ELEM: u32 = 3;
/// Id of `bpf_ktime_get_ns`.
#[doc(alias = "BPF_FUNC_ktime_get_ns")]
pub const KTIME_GET_NS: u32 = 5;
/// Id of `bpf_trace_printk`.
#[doc(alias = "BPF_FUNC_trace_printk")]
pub const TRACE_PRINTK: u32 = 6;
/// Id of `bpf_get_prandom_u32`.
#[doc(alias = "BPF_FUNC_get_prandom_u32")]
pub const GET_PRANDOM_U32: u32 = 7;
/// Id of `bpf_get_smp_processor_id`.
#[doc(alias = "BPF_FUNC_get_smp_processor_id")]
pub const GET_SMP_PROCESSOR_ID: u32 = 8;
/// Id of `bpf_skb_store_bytes`.
#[doc(alias = "BPF_FUNC_skb_store_bytes")]
pub const SKB_STORE_BYTES: u32 = 9;
/// Id of `bpf_tail_call`.
#[doc(alias = "BPF_FUNC_tail_call")]
pub const TAIL_CALL: u32 = 12;
/// Id of `bpf_get_current_pid_tgid`.
#[doc(alias = "BPF_FUNC_get_current_pid_tgid")]
pub const GET_CURRENT_PID_TGID: u32 = 14;
/// Id of `bpf_get_current_uid_gid`.
#[doc(alias = "BPF_FUNC_get_current_uid_gid")]
pub const GET_CURRENT_UID_GID: u32 = 15;
/// Id of `bpf_get_current_comm`.
#[doc(alias = "BPF_FUNC_get_current_comm")]
pub const GET_CURRENT_COMM: u32 = 16;
/// Id of `bpf_perf_event_read`.
#[doc(alias = "BPF_FUNC_perf_event_read")]
pub const PERF_EVENT_READ: u32 = 22;
/// Id of `bpf_redirect`.
#[doc(alias = "BPF_FUNC_redirect")]
pub const REDIRECT: u32 = 23;
/// Id of `bpf_perf_event_output`.
#[doc(alias = "BPF_FUNC_perf_event_output")]
pub const PERF_EVENT_OUTPUT: u32 = 25;
/// Id of `bpf_skb_load_bytes`.
#[doc(alias = "BPF_FUNC_skb_load_bytes")]
pub const SKB_LOAD_BYTES: u32 = 26;
/// Id of `bpf_csum_diff`.
#[doc(alias = "BPF_FUNC_csum_diff")]
pub const CSUM_DIFF: u32 = 28;
/// Id of `bpf_current_task_under_cgroup`.
#[doc(alias = "BPF_FUNC_current_task_under_cgroup")]
pub const CURRENT_TASK_UNDER_CGROUP: u32 = 37;
/// Id of `bpf_skb_pull_data`.
#[doc(alias = "BPF_FUNC_skb_pull_data")]
pub const SKB_PULL_DATA: u32 = 39;
/// Id of `bpf_csum_update`.
#[doc(alias = "BPF_FUNC_csum_update")]
pub const CSUM_UPDATE: u32 = 40;
/// Id of `bpf_set_hash_invalid`.
#[doc(alias = "BPF_FUNC_set_hash_invalid")]
pub const SET_HASH_INVALID: u32 = 41;
/// Id of `bpf_xdp_adjust_head`.
#[doc(alias = "BPF_FUNC_xdp_adjust_head")]
pub const XDP_ADJUST_HEAD: u32 = 44;
/// Id of `bpf_set_hash`.
#[doc(alias = "BPF_FUNC_set_hash")]
pub const SET_HASH: u32 = 48;
/// Id of `bpf_xdp_adjust_meta`.
#[doc(alias = "BPF_FUNC_xdp_adjust_meta")]
pub const XDP_ADJUST_META: u32 = 54;
/// Id of `bpf_perf_event_read_value`.
#[doc(alias = "BPF_FUNC_perf_event_read_value")]
pub const PERF_EVENT_READ_VALUE: u32 = 55;
/// Id of `bpf_xdp_adjust_tail`.
#[doc(alias = "BPF_FUNC_xdp_adjust_tail")]
pub const XDP_ADJUST_TAIL: u32 = 65;
/// Id of `bpf_skb_load_bytes_relative`.
#[doc(alias = "BPF_FUNC_skb_load_bytes_relative")]
pub const SKB_LOAD_BYTES_RELATIVE: u32 = 68;
/// Id of `bpf_spin_lock`.
#[doc(alias = "BPF_FUNC_spin_lock")]
pub const SPIN_LOCK: u32 = 93;
/// Id of `bpf_spin_unlock`.
#[doc(alias = "BPF_FUNC_spin_unlock")]
pub const SPIN_UNLOCK: u32 = 94;
/// Id of `bpf_strtol`.
#[doc(alias = "BPF_FUNC_strtol")]
pub const STRTOL: u32 = 105;
/// Id of `bpf_strtoul`.
#[doc(alias = "BPF_FUNC_strtoul")]
pub const STRTOUL: u32 = 106;
/// Id of `bpf_jiffies64`.
#[doc(alias = "BPF_FUNC_jiffies64")]
pub const JIFFIES64: u32 = 118;
/// Id of `bpf_ktime_get_boot_ns`.
#[doc(alias = "BPF_FUNC_ktime_get_boot_ns")]
pub const KTIME_GET_BOOT_NS: u32 = 125;
/// Id of `bpf_seq_printf`.
#[doc(alias = "BPF_FUNC_seq_printf")]
pub const SEQ_PRINTF: u32 = 126;
/// Id of `bpf_seq_write`.
#[doc(alias = "BPF_FUNC_seq_write")]
pub const SEQ_WRITE: u32 = 127;
/// Id of `bpf_csum_level`.
#[doc(alias = "BPF_FUNC_csum_level")]
pub const CSUM_LEVEL: u32 = 135;
/// Id of `bpf_redirect_neigh`.
#[doc(alias = "BPF_FUNC_redirect_neigh")]
pub const REDIRECT_NEIGH: u32 = 152;
/// Id of `bpf_redirect_peer`.
#[doc(alias = "BPF_FUNC_redirect_peer")]
pub const REDIRECT_PEER: u32 = 155;
/// Id of `bpf_ktime_get_coarse_ns`.
#[doc(alias = "BPF_FUNC_ktime_get_coarse_ns")]
pub const KTIME_GET_COARSE_NS: u32 = 160;
/// Id of `bpf_for_each_map_elem`.
#[doc(alias = "BPF_FUNC_for_each_map_elem")]
pub const FOR_EACH_MAP_ELEM: u32 = 164;
/// Id of `bpf_snprintf`.
#[doc(alias = "BPF_FUNC_snprintf")]
pub const SNPRINTF: u32 = 165;
/// Id of `bpf_timer_init`.
#[doc(alias = "BPF_FUNC_timer_init")]
pub const TIMER_INIT: u32 = 169;
/// Id of `bpf_timer_set_callback`.
#[doc(alias = "BPF_FUNC_timer_set_callback")]
pub const TIMER_SET_CALLBACK: u32 = 170;
/// Id of `bpf_timer_start`.
#[doc(alias = "BPF_FUNC_timer_start")]
pub const TIMER_START: u32 = 171;
/// Id of `bpf_timer_cancel`.
#[doc(alias = "BPF_FUNC_timer_cancel")]
pub const TIMER_CANCEL: u32 = 172;
/// Id of `bpf_trace_vprintk`.
#[doc(alias = "BPF_FUNC_trace_vprintk")]
pub const TRACE_VPRINTK: u32 = 177;
/// Id of `bpf_loop`.
#[doc(alias = "BPF_FUNC_loop")]
pub const LOOP: u32 = 181;
/// Id of `bpf_strncmp`.
#[doc(alias = "BPF_FUNC_strncmp")]
pub const STRNCMP: u32 = 182;
/// Id of `bpf_xdp_get_buff_len`.
#[doc(alias = "BPF_FUNC_xdp_get_buff_len")]
pub const XDP_GET_BUFF_LEN: u32 = 188;
/// Id of `bpf_xdp_load_bytes`.
#[doc(alias = "BPF_FUNC_xdp_load_bytes")]
pub const XDP_LOAD_BYTES: u32 = 189;
/// Id of `bpf_xdp_store_bytes`.
#[doc(alias = "BPF_FUNC_xdp_store_bytes")]
pub const XDP_STORE_BYTES: u32 = 190;
/// Id of `bpf_kptr_xchg`.
#[doc(alias = "BPF_FUNC_kptr_xchg")]
pub const KPTR_XCHG: u32 = 194;
/// Id of `bpf_map_lookup_percpu_elem`.
#[doc(alias = "BPF_FUNC_map_lookup_percpu_elem")]
pub const MAP_LOOKUP_PERCPU_ELEM: u32 = 195;
/// Id of `bpf_ktime_get_tai_ns`.
#[doc(alias = "BPF_FUNC_ktime_get_tai_ns")]
pub const KTIME_GET_TAI_NS: u32 = 208;

/// What the load of a byte of the packet becomes a call of in translated programs: a number of our own, for the kernel's
/// function has none. No program can call it.
#[doc(alias = "bpf_skb_load_helper_8_no_cache")]
pub const SKB_LOAD_HELPER_8_NO_CACHE: u32 = u32::MAX - 2;
/// As [`SKB_LOAD_HELPER_8_NO_CACHE`], for two bytes.
#[doc(alias = "bpf_skb_load_helper_16_no_cache")]
pub const SKB_LOAD_HELPER_16_NO_CACHE: u32 = u32::MAX - 1;
/// As [`SKB_LOAD_HELPER_8_NO_CACHE`], for four bytes.
#[doc(alias = "bpf_skb_load_helper_32_no_cache")]
pub const SKB_LOAD_HELPER_32_NO_CACHE: u32 = u32::MAX;

/// The name of a helper, with its `bpf_` prefix; `None` past the last id.
///
/// ```
/// use bpfarray_core::helper_id;
/// assert_eq!(helper_id::name(helper_id::MAP_LOOKUP_ELEM), Some("bpf_map_lookup_elem"));
/// assert_eq!(helper_id::name(212), None);
/// ```
///
/// # Kernel
/// `___BPF_FUNC_MAPPER`
pub fn name(id: u32) -> Option<&'static str> {
    match id {
        SKB_LOAD_HELPER_8_NO_CACHE => Some("bpf_skb_load_helper_8_no_cache"),
        SKB_LOAD_HELPER_16_NO_CACHE => Some("bpf_skb_load_helper_16_no_cache"),
        SKB_LOAD_HELPER_32_NO_CACHE => Some("bpf_skb_load_helper_32_no_cache"),
        _ => NAMES.get(id as usize).copied(),
    }
}

/// The id of the helper with this name, with or without its `bpf_` prefix.
pub fn id(name: &str) -> Option<u32> {
    let has_name = |full: &&str| *full == name || full.strip_prefix("bpf_") == Some(name);
    NAMES.iter().position(has_name).map(|id| id as u32)
}

#[rustfmt::skip]
const NAMES: [&str; 212] = [
    "bpf_unspec", "bpf_map_lookup_elem", "bpf_map_update_elem", "bpf_map_delete_elem", "bpf_probe_read",
    "bpf_ktime_get_ns", "bpf_trace_printk", "bpf_get_prandom_u32", "bpf_get_smp_processor_id",
    "bpf_skb_store_bytes", "bpf_l3_csum_replace", "bpf_l4_csum_replace", "bpf_tail_call",
    "bpf_clone_redirect", "bpf_get_current_pid_tgid", "bpf_get_current_uid_gid", "bpf_get_current_comm",
    "bpf_get_cgroup_classid", "bpf_skb_vlan_push", "bpf_skb_vlan_pop", "bpf_skb_get_tunnel_key",
    "bpf_skb_set_tunnel_key", "bpf_perf_event_read", "bpf_redirect", "bpf_get_route_realm",
    "bpf_perf_event_output", "bpf_skb_load_bytes", "bpf_get_stackid", "bpf_csum_diff",
    "bpf_skb_get_tunnel_opt", "bpf_skb_set_tunnel_opt", "bpf_skb_change_proto", "bpf_skb_change_type",
    "bpf_skb_under_cgroup", "bpf_get_hash_recalc", "bpf_get_current_task", "bpf_probe_write_user",
    "bpf_current_task_under_cgroup", "bpf_skb_change_tail", "bpf_skb_pull_data", "bpf_csum_update",
    "bpf_set_hash_invalid", "bpf_get_numa_node_id", "bpf_skb_change_head", "bpf_xdp_adjust_head",
    "bpf_probe_read_str", "bpf_get_socket_cookie", "bpf_get_socket_uid", "bpf_set_hash", "bpf_setsockopt",
    "bpf_skb_adjust_room", "bpf_redirect_map", "bpf_sk_redirect_map", "bpf_sock_map_update",
    "bpf_xdp_adjust_meta", "bpf_perf_event_read_value", "bpf_perf_prog_read_value", "bpf_getsockopt",
    "bpf_override_return", "bpf_sock_ops_cb_flags_set", "bpf_msg_redirect_map", "bpf_msg_apply_bytes",
    "bpf_msg_cork_bytes", "bpf_msg_pull_data", "bpf_bind", "bpf_xdp_adjust_tail", "bpf_skb_get_xfrm_state",
    "bpf_get_stack", "bpf_skb_load_bytes_relative", "bpf_fib_lookup", "bpf_sock_hash_update",
    "bpf_msg_redirect_hash", "bpf_sk_redirect_hash", "bpf_lwt_push_encap", "bpf_lwt_seg6_store_bytes",
    "bpf_lwt_seg6_adjust_srh", "bpf_lwt_seg6_action", "bpf_rc_repeat", "bpf_rc_keydown", "bpf_skb_cgroup_id",
    "bpf_get_current_cgroup_id", "bpf_get_local_storage", "bpf_sk_select_reuseport",
    "bpf_skb_ancestor_cgroup_id", "bpf_sk_lookup_tcp", "bpf_sk_lookup_udp", "bpf_sk_release",
    "bpf_map_push_elem", "bpf_map_pop_elem", "bpf_map_peek_elem", "bpf_msg_push_data", "bpf_msg_pop_data",
    "bpf_rc_pointer_rel", "bpf_spin_lock", "bpf_spin_unlock", "bpf_sk_fullsock", "bpf_tcp_sock",
    "bpf_skb_ecn_set_ce", "bpf_get_listener_sock", "bpf_skc_lookup_tcp", "bpf_tcp_check_syncookie",
    "bpf_sysctl_get_name", "bpf_sysctl_get_current_value", "bpf_sysctl_get_new_value",
    "bpf_sysctl_set_new_value", "bpf_strtol", "bpf_strtoul", "bpf_sk_storage_get", "bpf_sk_storage_delete",
    "bpf_send_signal", "bpf_tcp_gen_syncookie", "bpf_skb_output", "bpf_probe_read_user",
    "bpf_probe_read_kernel", "bpf_probe_read_user_str", "bpf_probe_read_kernel_str", "bpf_tcp_send_ack",
    "bpf_send_signal_thread", "bpf_jiffies64", "bpf_read_branch_records", "bpf_get_ns_current_pid_tgid",
    "bpf_xdp_output", "bpf_get_netns_cookie", "bpf_get_current_ancestor_cgroup_id", "bpf_sk_assign",
    "bpf_ktime_get_boot_ns", "bpf_seq_printf", "bpf_seq_write", "bpf_sk_cgroup_id",
    "bpf_sk_ancestor_cgroup_id", "bpf_ringbuf_output", "bpf_ringbuf_reserve", "bpf_ringbuf_submit",
    "bpf_ringbuf_discard", "bpf_ringbuf_query", "bpf_csum_level", "bpf_skc_to_tcp6_sock",
    "bpf_skc_to_tcp_sock", "bpf_skc_to_tcp_timewait_sock", "bpf_skc_to_tcp_request_sock",
    "bpf_skc_to_udp6_sock", "bpf_get_task_stack", "bpf_load_hdr_opt", "bpf_store_hdr_opt",
    "bpf_reserve_hdr_opt", "bpf_inode_storage_get", "bpf_inode_storage_delete", "bpf_d_path",
    "bpf_copy_from_user", "bpf_snprintf_btf", "bpf_seq_printf_btf", "bpf_skb_cgroup_classid",
    "bpf_redirect_neigh", "bpf_per_cpu_ptr", "bpf_this_cpu_ptr", "bpf_redirect_peer", "bpf_task_storage_get",
    "bpf_task_storage_delete", "bpf_get_current_task_btf", "bpf_bprm_opts_set", "bpf_ktime_get_coarse_ns",
    "bpf_ima_inode_hash", "bpf_sock_from_file", "bpf_check_mtu", "bpf_for_each_map_elem", "bpf_snprintf",
    "bpf_sys_bpf", "bpf_btf_find_by_name_kind", "bpf_sys_close", "bpf_timer_init", "bpf_timer_set_callback",
    "bpf_timer_start", "bpf_timer_cancel", "bpf_get_func_ip", "bpf_get_attach_cookie", "bpf_task_pt_regs",
    "bpf_get_branch_snapshot", "bpf_trace_vprintk", "bpf_skc_to_unix_sock", "bpf_kallsyms_lookup_name",
    "bpf_find_vma", "bpf_loop", "bpf_strncmp", "bpf_get_func_arg", "bpf_get_func_ret", "bpf_get_func_arg_cnt",
    "bpf_get_retval", "bpf_set_retval", "bpf_xdp_get_buff_len", "bpf_xdp_load_bytes", "bpf_xdp_store_bytes",
    "bpf_copy_from_user_task", "bpf_skb_set_tstamp", "bpf_ima_file_hash", "bpf_kptr_xchg",
    "bpf_map_lookup_percpu_elem", "bpf_skc_to_mptcp_sock", "bpf_dynptr_from_mem",
    "bpf_ringbuf_reserve_dynptr", "bpf_ringbuf_submit_dynptr", "bpf_ringbuf_discard_dynptr",
    "bpf_dynptr_read", "bpf_dynptr_write", "bpf_dynptr_data", "bpf_tcp_raw_gen_syncookie_ipv4",
    "bpf_tcp_raw_gen_syncookie_ipv6", "bpf_tcp_raw_check_syncookie_ipv4", "bpf_tcp_raw_check_syncookie_ipv6",
    "bpf_ktime_get_tai_ns", "bpf_user_ringbuf_drain", "bpf_cgrp_storage_get", "bpf_cgrp_storage_delete",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_and_names_agree() {
        for (id, expected) in [
            (MAP_LOOKUP_ELEM, "bpf_map_lookup_elem"),
            (MAP_UPDATE_ELEM, "bpf_map_update_elem"),
            (MAP_DELETE_ELEM, "bpf_map_delete_elem"),
            (KTIME_GET_NS, "bpf_ktime_get_ns"),
            (TRACE_PRINTK, "bpf_trace_printk"),
            (GET_PRANDOM_U32, "bpf_get_prandom_u32"),
            (GET_SMP_PROCESSOR_ID, "bpf_get_smp_processor_id"),
            (SKB_STORE_BYTES, "bpf_skb_store_bytes"),
            (TAIL_CALL, "bpf_tail_call"),
            (GET_CURRENT_PID_TGID, "bpf_get_current_pid_tgid"),
            (SKB_LOAD_BYTES, "bpf_skb_load_bytes"),
            (CSUM_DIFF, "bpf_csum_diff"),
            (SKB_PULL_DATA, "bpf_skb_pull_data"),
            (XDP_ADJUST_HEAD, "bpf_xdp_adjust_head"),
            (XDP_ADJUST_META, "bpf_xdp_adjust_meta"),
            (XDP_ADJUST_TAIL, "bpf_xdp_adjust_tail"),
            (SKB_LOAD_BYTES_RELATIVE, "bpf_skb_load_bytes_relative"),
            (JIFFIES64, "bpf_jiffies64"),
            (KTIME_GET_BOOT_NS, "bpf_ktime_get_boot_ns"),
            (KTIME_GET_COARSE_NS, "bpf_ktime_get_coarse_ns"),
            (FOR_EACH_MAP_ELEM, "bpf_for_each_map_elem"),
            (LOOP, "bpf_loop"),
            (STRNCMP, "bpf_strncmp"),
            (XDP_GET_BUFF_LEN, "bpf_xdp_get_buff_len"),
            (XDP_LOAD_BYTES, "bpf_xdp_load_bytes"),
            (XDP_STORE_BYTES, "bpf_xdp_store_bytes"),
            (MAP_LOOKUP_PERCPU_ELEM, "bpf_map_lookup_percpu_elem"),
            (KTIME_GET_TAI_NS, "bpf_ktime_get_tai_ns"),
        ] {
            assert_eq!(name(id), Some(expected));
        }
    }

    #[test]
    fn ids_and_names_are_each_others_inverse() {
        for (index, full) in NAMES.iter().enumerate() {
            assert_eq!(id(full), Some(index as u32));
            assert_eq!(full.strip_prefix("bpf_").and_then(id), Some(index as u32));
        }
        assert_eq!(id("bpf_no_such_helper"), None);
    }
}
