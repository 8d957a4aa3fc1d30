//! NUMA nodes: which there are.

use std::sync::OnceLock;

/// The NUMA nodes that are online; node 0 where the system does not tell.
///
/// # Kernel
/// `node_online_map`
#[doc(alias = "node_online")]
pub fn online_nodes() -> &'static [u32] {
    static NODES: OnceLock<Vec<u32>> = OnceLock::new();
    NODES.get_or_init(|| {
        std::fs::read_to_string("/sys/devices/system/node/online")
            .ok()
            .and_then(|list| parse_node_list(&list))
            .unwrap_or_else(|| vec![0])
    })
}

/// The numbers in a list such as `0-3,8`.
fn parse_node_list(list: &str) -> Option<Vec<u32>> {
    let mut nodes = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        nodes.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_lists_are_numbers_and_ranges() {
        assert_eq!(parse_node_list("0\n"), Some(vec![0]));
        assert_eq!(parse_node_list("0-2,7\n"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_node_list("\n"), None);
        assert_eq!(parse_node_list("a-b"), None);
    }
}
