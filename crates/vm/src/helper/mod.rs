//! The functions a program can call by number: Linux's, and those a host adds.

mod csum;
mod fields;
mod format;
mod map;
mod number;
mod packet_load;
mod perf;
mod redirect;
mod seq;
mod skb;
mod string;
mod system;
// The same tests for each engine.
#[cfg(test)]
#[path = "."]
mod engines {
    #[path = "."]
    mod interp {
        use crate::interp::tests as cases;
        #[allow(clippy::duplicate_mod)]
        #[path = "tests/mod.rs"]
        mod tests;
    }

    #[cfg(feature = "jit")]
    #[path = "."]
    mod jit {
        use crate::interp::jit_tests as cases;
        #[allow(clippy::duplicate_mod)]
        #[path = "tests/mod.rs"]
        mod tests;
    }

    #[cfg(feature = "jit")]
    #[path = "."]
    mod quick {
        use crate::interp::quick_tests as cases;
        #[allow(clippy::duplicate_mod)]
        #[path = "tests/mod.rs"]
        mod tests;
    }
}
mod trace;
mod xdp;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bpfarray_core::helper_id;

use crate::fault::FaultKind;
pub use crate::fault::HelperError;
pub use crate::interp::Machine;

/// What a helper does: it gets r1 to r5 and gives r0.
pub type Function = dyn Fn(&mut Machine<'_>, [u64; 5]) -> Result<u64, HelperError> + Send + Sync;

/// Where traces go.
type Trace = dyn Fn(&str) + Send + Sync;

/// A function a program can call.
#[derive(Clone)]
pub struct Helper {
    id: u32,
    name: Arc<str>,
    function: Origin,
    /// From how many registers it takes arguments.
    args: u8,
}

/// Whose a helper is.
#[derive(Clone)]
enum Origin {
    /// Ours, which does no more than the verifier knows of it.
    Builtin(BuiltinFunction),
    Host(Arc<Function>),
}

impl Helper {
    /// The helper's name; Linux's have the prefix `bpf_`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// From how many registers, beginning with r1, it takes arguments.
    pub(crate) fn args(&self) -> usize {
        self.args.into()
    }

    pub(crate) fn is_builtin(&self) -> bool {
        matches!(self.function, Origin::Builtin(_))
    }

    /// Runs the helper for a program that may call it now.
    #[inline]
    pub(crate) fn call(&self, machine: &mut Machine<'_>, args: [u64; 5]) -> Result<u64, FaultKind> {
        machine.check_helper(self.id, &self.name)?;
        let result = match &self.function {
            Origin::Builtin(function) => function(machine, args),
            Origin::Host(function) => function(machine, args),
        };
        result.map_err(|error| FaultKind::helper(&self.name, &args, error))
    }
}

impl fmt::Debug for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Helper").field(&self.name).finish()
    }
}

/// The helpers that programs can call, by their numbers.
///
/// ```
/// use bpfarray_vm::helper::HelperSet;
/// let mut helpers = HelperSet::linux();
/// assert_eq!(helpers.name(1), Some("bpf_map_lookup_elem"));
/// helpers.register(100_000, "host_add", |_, [a, b, ..]| Ok(a.wrapping_add(b)));
/// assert!(helpers.contains(100_000));
/// ```
#[derive(Clone)]
pub struct HelperSet {
    helpers: BTreeMap<u32, Helper>,
    trace: Arc<Trace>,
}

/// A helper as the tables of this module have it.
type Builtin = (u32, BuiltinFunction);
type BuiltinFunction = fn(&mut Machine<'_>, [u64; 5]) -> Result<u64, HelperError>;

impl HelperSet {
    /// The helpers of Linux that can be had outside a kernel.
    pub fn linux() -> Self {
        let mut set = Self::none();
        let tables: [&[Builtin]; 12] = [
            map::HELPERS,
            csum::HELPERS,
            fields::HELPERS,
            number::HELPERS,
            perf::HELPERS,
            redirect::HELPERS,
            seq::HELPERS,
            skb::HELPERS,
            string::HELPERS,
            system::HELPERS,
            trace::HELPERS,
            xdp::HELPERS,
        ];
        for &(id, function) in tables.into_iter().flatten() {
            if let Some(name) = helper_id::name(id) {
                let (name, function) = (name.into(), Origin::Builtin(function));
                set.helpers.insert(id, Helper { id, name, function, args: args(id) });
            }
        }
        set
    }

    /// No helpers at all.
    pub fn none() -> Self {
        Self { helpers: BTreeMap::new(), trace: Arc::new(|text| eprint!("{text}")) }
    }

    /// Adds a helper, in the place of one that had its number. Programs can call those up to `i32::MAX`.
    ///
    /// A helper may read and write the program's memory through [`Machine::read`] and [`Machine::write`],
    /// and call functions of the program with [`Machine::call`].
    pub fn register(
        &mut self,
        id: u32,
        name: &str,
        function: impl Fn(&mut Machine<'_>, [u64; 5]) -> Result<u64, HelperError>
        + Send
        + Sync
        + 'static,
    ) {
        let (name, function) = (name.into(), Origin::Host(Arc::new(function)));
        self.helpers.insert(id, Helper { id, name, function, args: 5 });
    }

    /// Whether programs can call a helper of this number.
    pub fn contains(&self, id: u32) -> bool {
        !is_internal(id) && self.helpers.contains_key(&id)
    }

    /// The name of the helper that has this number.
    pub fn name(&self, id: u32) -> Option<&str> {
        self.get(id).map(|helper| &*helper.name)
    }

    /// The helper that has this number. Translated programs call some that others cannot.
    pub(crate) fn get(&self, id: u32) -> Option<&Helper> {
        if is_internal(id) { packet_load::helper(id) } else { self.helpers.get(&id) }
    }

    /// Says where the text of `bpf_trace_printk` goes: by default to standard error.
    pub fn set_trace(&mut self, trace: impl Fn(&str) + Send + Sync + 'static) {
        self.trace = Arc::new(trace);
    }

    pub(crate) fn trace(&self, text: &str) {
        (self.trace)(text);
    }
}

/// Whether no program can call a helper of this number.
const fn is_internal(id: u32) -> bool {
    id > i32::MAX as u32
}

/// How many arguments a helper of Linux takes, where it is worth to know that it takes few.
const fn args(id: u32) -> u8 {
    match id {
        helper_id::KTIME_GET_NS
        | helper_id::KTIME_GET_BOOT_NS
        | helper_id::KTIME_GET_COARSE_NS
        | helper_id::KTIME_GET_TAI_NS
        | helper_id::JIFFIES64
        | helper_id::GET_PRANDOM_U32
        | helper_id::GET_SMP_PROCESSOR_ID
        | helper_id::GET_CURRENT_PID_TGID => 0,
        helper_id::MAP_LOOKUP_ELEM | helper_id::MAP_DELETE_ELEM => 2,
        helper_id::MAP_LOOKUP_PERCPU_ELEM => 3,
        helper_id::MAP_UPDATE_ELEM => 4,
        _ => 5,
    }
}

impl Default for HelperSet {
    fn default() -> Self {
        Self::linux()
    }
}

impl fmt::Debug for HelperSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.helpers.iter().map(|(id, helper)| (id, &helper.name))).finish()
    }
}
