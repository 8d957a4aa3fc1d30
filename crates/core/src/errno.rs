//! Error numbers, as an open set: codes without a name here stay representable.

use core::fmt;

/// A Linux error number, positive, as `bpf(2)` leaves it in `errno`.
///
/// ```
/// use bpfarray_core::Errno;
/// assert_eq!(Errno::ENOTSUPP.raw(), 524);
/// assert_eq!(Errno::E2BIG.to_return() as i64, -7);
/// assert_eq!(Errno::EINVAL.to_string(), "EINVAL");
/// ```
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The C name, or `None` for a code this crate never returns.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1;
    /// No such file or directory; for maps, no such element.
    ENOENT = 2;
    /// Argument list too long; for maps, an index or size past its bound.
    E2BIG = 7;
    /// Bad file descriptor.
    EBADF = 9;
    /// Try again; for cgroup arrays, an empty slot.
    EAGAIN = 11;
    /// Out of memory.
    ENOMEM = 12;
    /// Permission denied.
    EACCES = 13;
    /// Bad address.
    EFAULT = 14;
    /// Device or resource busy.
    EBUSY = 16;
    /// File exists; for maps, an element that exists already.
    EEXIST = 17;
    /// Invalid argument.
    EINVAL = 22;
    /// No space left on device.
    ENOSPC = 28;
    /// Result out of range.
    ERANGE = 34;
    /// Protocol error.
    EPROTO = 71;
    /// Value too large for its type; for the output of iterators, no room left.
    EOVERFLOW = 75;
    /// File descriptor in bad state.
    EBADFD = 77;
    /// Operation not supported.
    EOPNOTSUPP = 95;
    /// Kernel-internal "not supported". It reaches user space unchanged and differs from [`Errno::EOPNOTSUPP`].
    ENOTSUPP = 524;
}

impl Errno {
    /// Wraps a positive error number.
    pub const fn from_raw(raw: i32) -> Self {
        Self(raw)
    }

    /// The positive error number.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// What a helper leaves in `r0` for this error: the negated number, sign-extended to 64 bits.
    pub const fn to_return(self) -> u64 {
        (-(self.0 as i64)) as u64
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Errno {}
