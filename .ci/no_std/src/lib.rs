//! Links `bpfarray-core` into a library that has no std: no panic handler, no allocator but these.
#![no_std]

use core::alloc::{GlobalAlloc, Layout};

use bpfarray_core::attr::{Creator, MapAttr};

struct NoMemory;

// SAFETY: never returning memory is a valid answer to every request; nothing is ever freed.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: NoMemory = NoMemory;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The error number of an empty attribute, so that the rules are linked in.
#[unsafe(no_mangle)]
pub extern "C" fn no_std_check() -> i32 {
    MapAttr::default().check(&Creator::default()).map_or_else(|e| e.errno().raw(), |_| 0)
}
