//! Calls: of helpers, of functions, and into other programs.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{ExtFuncData, ExternalName, InstBuilder, UserExternalName, Value};

use super::{FIELD, R0, Then, Translation, isa};
use crate::interp::{FRAME_SIZE, Stack, place};
use crate::jit::analysis::{R6, R10};
use crate::jit::trampoline::{self, Reason};

impl Translation<'_, '_> {
    fn args(&mut self) -> Vec<Value> {
        (1..=5).map(|reg| self.get(reg)).collect()
    }

    pub(super) fn call_helper(&mut self, at: usize, id: u32) -> Then {
        let Some(helper) = self.subject.helpers.get(id) else {
            return self.fault(at, Reason::UnknownHelper, id.into());
        };
        let helper = std::ptr::from_ref(helper).expose_provenance();
        let mut args = vec![self.machine];
        args.extend(self.args());
        args.extend([self.int(helper as u64), self.int(at as u64)]);
        self.store_fuel();
        let answer = self.call_rust(trampoline::helper as *const () as usize, &args, 2);
        self.unless_stopped(answer[1]);
        self.load_fuel();
        self.set(R0, answer[0]);
        Then::Next
    }

    pub(super) fn call_function(&mut self, at: usize, target: usize) {
        let low = self.stack_field(Stack::LOW, FIELD);
        let none_left = self.builder.ins().icmp_imm_u(IntCC::Equal, low, 0);
        let (deep, go_on) = (self.builder.create_block(), self.builder.create_block());
        self.builder.ins().brif(none_left, deep, &[], go_on, &[]);
        self.builder.switch_to_block(deep);
        self.builder.set_cold_block(deep);
        self.fault(at, Reason::CallDepth, 0);
        self.builder.switch_to_block(go_on);
        let lower = self.builder.ins().iadd_imm_s(low, -(FRAME_SIZE as i64));
        self.set_stack_field(Stack::LOW, lower);

        let name = UserExternalName::new(0, target as u32);
        let name = ExternalName::user(self.builder.func.declare_imported_user_function(name));
        let signature = self.builder.import_signature(isa::tail_signature());
        let callee = self.builder.import_function(ExtFuncData {
            name,
            signature,
            colocated: true,
            patchable: false,
        });
        let running = self.subject.shape.has_tail_calls.then(|| self.field(place::RUNNING, FIELD));
        let mut args = vec![self.machine];
        args.extend(self.args());
        self.store_fuel();
        let call = self.builder.ins().call(callee, &args);
        let answer = self.builder.inst_results(call).to_vec();
        self.unless_stopped(answer[1]);
        self.load_fuel();
        self.set_stack_field(Stack::LOW, low);
        if let Some(running) = running {
            self.resume(running);
        }
        // What the callee left in other registers is nobody's business.
        let zero = self.int(0);
        for reg in (1..16).filter(|reg| !(R6..=R10).contains(reg)) {
            self.set(reg, zero);
        }
        // The frame pointer comes back, whatever was written to its register.
        let top = self.frame_top();
        self.set(R10, top);
        self.set(R0, answer[0]);
    }

    /// Makes this program the running one if a callee has left another.
    fn resume(&mut self, running: Value) {
        let now = self.field(place::RUNNING, FIELD);
        let other = self.builder.ins().icmp(IntCC::NotEqual, now, running);
        let (resume, go_on) = (self.builder.create_block(), self.builder.create_block());
        self.builder.ins().brif(other, resume, &[], go_on, &[]);
        self.builder.switch_to_block(resume);
        self.builder.set_cold_block(resume);
        let function = trampoline::resume as *const () as usize;
        self.call_rust(function, &[self.machine, running], 0);
        self.builder.ins().jump(go_on, &[]);
        self.builder.switch_to_block(go_on);
    }

    /// A tail call, through the map with this address if it is known.
    pub(super) fn tail_call(&mut self, at: usize, map_addr: Option<u64>) {
        self.burn(at, at.saturating_sub(self.subject.entry) as u64 + 1);
        self.store_fuel();
        let (ctx, map, index) = (self.get(1), self.get(2), self.get(3));
        let insn = self.int(at as u64);
        let known = map_addr.and_then(|addr| self.subject.regions.position(addr));
        let known = self.int(known.map_or(u64::MAX, |known| known as u64));
        let args = [self.machine, ctx, map, index, insn, known];
        let answer = self.call_rust(trampoline::tail_call as *const () as usize, &args, 2);
        self.unless_stopped(answer[1]);
        let (jump, fall_through) = (self.builder.create_block(), self.builder.create_block());
        self.builder.ins().brif(answer[0], jump, &[], fall_through, &[]);
        self.builder.switch_to_block(jump);
        let signature = self.builder.import_signature(isa::tail_signature());
        let zero = self.int(0);
        let args = [self.machine, ctx, zero, zero, zero, zero];
        self.builder.ins().return_call_indirect(signature, answer[0], &args);
        self.builder.switch_to_block(fall_through);
    }
}
