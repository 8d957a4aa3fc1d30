//! Sending a packet elsewhere. The packet stays: as in a test run, where it should go is the return value's.

use super::Builtin;
use crate::fault::HelperError;
use crate::interp::Machine;
use bpfarray_core::helper_id;

pub(super) const HELPERS: &[Builtin] = &[
    (helper_id::REDIRECT, redirect),
    (helper_id::REDIRECT_NEIGH, redirect_neigh),
    (helper_id::REDIRECT_PEER, redirect_peer),
];

const XDP_ABORTED: u64 = 0;
const XDP_REDIRECT: u64 = 4;
const TC_ACT_SHOT: u64 = 2;
const TC_ACT_REDIRECT: u64 = 7;

/// The packet is to come in at the interface, not to leave through it.
const INGRESS: u64 = 1;

/// Bytes of `struct bpf_redir_neigh`.
const REDIR_NEIGH_SIZE: u32 = 20;

fn classified(is_valid: bool) -> u64 {
    if is_valid { TC_ACT_REDIRECT } else { TC_ACT_SHOT }
}

/// # Kernel
/// `bpf_xdp_redirect`, `bpf_redirect`
fn redirect(machine: &mut Machine<'_>, [_, flags, ..]: [u64; 5]) -> Result<u64, HelperError> {
    let context = machine.current_context();
    if context.xdp().is_some() {
        return Ok(if flags == 0 { XDP_REDIRECT } else { XDP_ABORTED });
    }
    context.classifier().ok_or(HelperError::WrongContext)?;
    Ok(classified(flags & !INGRESS == 0))
}

/// # Kernel
/// `bpf_redirect_neigh`
fn redirect_neigh(
    machine: &mut Machine<'_>,
    [_, params, params_size, flags, _]: [u64; 5],
) -> Result<u64, HelperError> {
    machine.current_context().classifier().ok_or(HelperError::WrongContext)?;
    let params_size = params_size as u32;
    if params_size != 0 {
        machine.read_vec(params, params_size.into())?;
    }
    let has_params = params_size == 0 || params_size >= REDIR_NEIGH_SIZE;
    Ok(classified(flags == 0 && has_params))
}

/// # Kernel
/// `bpf_redirect_peer`
fn redirect_peer(machine: &mut Machine<'_>, [_, flags, ..]: [u64; 5]) -> Result<u64, HelperError> {
    machine.current_context().classifier().ok_or(HelperError::WrongContext)?;
    Ok(classified(flags == 0))
}
