//! The processor that code is made for, and the conventions of calls.

use std::sync::{Arc, OnceLock};

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{
    AbiParam, Function, InstBuilder, Signature, Type, UserFuncName, types,
};
use cranelift_codegen::isa::{self, CallConv, OwnedTargetIsa, TargetIsa};
use cranelift_codegen::settings::{self, Configurable, SetResult};
use cranelift_codegen::{Context, settings::Flags};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};

use super::memory::CodeMemory;

/// What generated code knows as an address.
pub(super) const POINTER: Type = types::I64;

/// The processor this process runs on, if code can be made for it.
pub(super) fn host() -> Option<&'static Arc<dyn TargetIsa>> {
    static HOST: OnceLock<Option<OwnedTargetIsa>> = OnceLock::new();
    HOST.get_or_init(|| {
        let flags = flags().ok()?;
        let mut builder =
            isa::lookup_by_name(&format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).ok()?;
        for feature in features() {
            builder.enable(feature).ok()?;
        }
        builder.finish(flags).ok()
    })
    .as_ref()
}

fn flags() -> SetResult<Flags> {
    let mut flags = settings::builder();
    flags.set("opt_level", "speed")?;
    flags.set("unwind_info", "false")?;
    flags.set("enable_probestack", "false")?;
    // Profilers find their way through generated code.
    flags.set("preserve_frame_pointers", "true")?;
    flags.set("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" })?;
    Ok(Flags::new(flags))
}

#[cfg(target_arch = "x86_64")]
fn features() -> impl Iterator<Item = &'static str> {
    let found = [
        ("has_bmi1", std::arch::is_x86_feature_detected!("bmi1")),
        ("has_bmi2", std::arch::is_x86_feature_detected!("bmi2")),
    ];
    found.into_iter().filter(|(_, found)| *found).map(|(name, _)| name)
}

#[cfg(target_arch = "aarch64")]
fn features() -> impl Iterator<Item = &'static str> {
    std::arch::is_aarch64_feature_detected!("lse").then_some("has_lse").into_iter()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> impl Iterator<Item = &'static str> {
    std::iter::empty()
}

/// A signature of `params` and `returns` numbers of 64 bits.
pub(super) fn signature(convention: CallConv, params: usize, returns: usize) -> Signature {
    let mut signature = Signature::new(convention);
    signature.params = vec![AbiParam::new(types::I64); params];
    signature.returns = vec![AbiParam::new(types::I64); returns];
    signature
}

/// How functions of programs are called: with the machine and r1 to r5. They return r0, and whether the
/// machine was stopped.
pub(super) fn tail_signature() -> Signature {
    signature(CallConv::Tail, 6, 2)
}

/// Code that Rust can call, which calls the function it is given: a machine, the address of the function, r1 to r5. It
/// returns r0.
pub(super) fn entry() -> Option<CodeMemory> {
    let isa = host()?;
    let signature = signature(isa.default_call_conv(), 7, 1);
    let mut context =
        Context::for_function(Function::with_name_signature(UserFuncName::default(), signature));
    let mut builder_context = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut builder_context);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    let params = builder.block_params(block).to_vec();
    let [machine, target, args @ ..] = &params[..] else { return None };
    let args = [&[*machine], args].concat();
    let callee = builder.import_signature(tail_signature());
    let call = builder.ins().call_indirect(callee, *target, &args);
    let r0 = builder.inst_results(call)[0];
    builder.ins().return_(&[r0]);
    builder.seal_all_blocks();
    builder.finalize(isa.frontend_config());
    let code = context.compile(&**isa, &mut ControlPlane::default()).ok()?;
    CodeMemory::new(code.code_buffer()).ok()
}
