//! What the packet loads of classic BPF call when they are translated. No program can call it itself.

use std::sync::LazyLock;

use bpfarray_core::{Errno, helper_id};

use super::{BuiltinFunction, Helper, Origin};
use crate::fault::HelperError;
use crate::interp::Machine;

/// The function that has this number.
pub(super) fn helper(id: u32) -> Option<&'static Helper> {
    static LOADS: LazyLock<[Helper; 3]> = LazyLock::new(|| {
        [
            of(helper_id::SKB_LOAD_HELPER_8_NO_CACHE, load::<1>),
            of(helper_id::SKB_LOAD_HELPER_16_NO_CACHE, load::<2>),
            of(helper_id::SKB_LOAD_HELPER_32_NO_CACHE, load::<4>),
        ]
    });
    LOADS.iter().find(|helper| helper.id == id)
}

fn of(id: u32, function: BuiltinFunction) -> Helper {
    let name = helper_id::name(id).unwrap_or_default().into();
    Helper { id, name, function: Origin::Builtin(function), args: 2 }
}

/// A number of `SIZE` bytes in network order, or -EFAULT where the packet has none.
///
/// # Kernel
/// `bpf_skb_load_helper_8_no_cache` and its siblings
fn load<const SIZE: usize>(
    machine: &mut Machine<'_>,
    [ctx, offset, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let context = machine.context(ctx).map_err(|_| HelperError::NoPacket)?;
    let (skb, buffer) = context.skb().ok_or(HelperError::NoPacket)?;
    // Offsets are 32 bits wide.
    let number = skb.legacy_load(buffer, offset as i32, SIZE);
    Ok(number.unwrap_or(Errno::EFAULT.to_return()))
}
