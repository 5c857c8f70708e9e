//! How large tables are backed: by huge pages, so that a look-up costs a cache miss and not a walk through page tables as well. And what
//! of the program stays mapped: what runs, not what only started it.
//!
//! Where transparent huge pages are off (`/sys/kernel/mm/transparent_hugepage/enabled`) or the kernel is older than 6.1, nothing
//! changes but the speed.

/// Size of a huge page.
pub const HUGE: usize = 2 << 20;

/// The huge pages that lie wholly within `len` bytes from `start`: address and number.
fn within(start: usize, len: usize) -> (usize, usize) {
    let first = start.next_multiple_of(HUGE);
    let end = start.saturating_add(len);
    (first, end.saturating_sub(first) / HUGE)
}

/// How many huge pages lie within a table's reserved memory.
#[must_use]
pub fn huge_pages<T>(table: &Vec<T>) -> usize {
    within(table.as_ptr() as usize, table.capacity() * size_of::<T>()).1
}

/// Asks that what of the table isn't backed with memory yet will be by huge pages, but for the first `skip` of them.
pub fn want_huge<T>(table: &Vec<T>, skip: usize) {
    let (first, n) = within(table.as_ptr() as usize, table.capacity() * size_of::<T>());
    let n = n.saturating_sub(skip);
    if n > 0 {
        let at = (first + skip * HUGE) as *mut libc::c_void;
        // SAFETY: the range is within the allocation of `table`; the advice doesn't change what it holds.
        unsafe { libc::madvise(at, n * HUGE, libc::MADV_HUGEPAGE) };
    }
}

/// Backs huge page number `page` of the table by one at once, copying what is there; false if the kernel doesn't.
pub fn make_huge<T>(table: &Vec<T>, page: usize) -> bool {
    let (first, n) = within(table.as_ptr() as usize, table.capacity() * size_of::<T>());
    if page >= n {
        return false;
    }
    let at = (first + page * HUGE) as *mut libc::c_void;
    // SAFETY: as above; the kernel moves the contents, as seen from here they stay.
    unsafe { libc::madvise(at, HUGE, libc::MADV_COLLAPSE) == 0 }
}

/// Unmaps what the program and its libraries have from their files and never write to: code and constants. What is used again is mapped
/// again from the page cache, in some microseconds; what only the start took is memory of this process no longer.
pub fn forget_start() {
    extern "C" fn forget(
        object: *mut libc::dl_phdr_info,
        _: libc::size_t,
        page: *mut libc::c_void,
    ) -> libc::c_int {
        let page = page as usize;
        // SAFETY: the dynamic linker hands over an object that it keeps from changing meanwhile, with that many headers.
        let (base, headers) = unsafe {
            let o = &*object;
            let n = usize::from(o.dlpi_phnum);
            let headers = match o.dlpi_phdr.is_null() {
                true => &[],
                false => std::slice::from_raw_parts(o.dlpi_phdr, n),
            };
            (o.dlpi_addr as usize, headers)
        };
        for h in headers {
            if h.p_type != libc::PT_LOAD || h.p_flags & libc::PF_W != 0 {
                continue;
            }
            let from = (base + h.p_vaddr as usize) & !(page - 1);
            let to = base + (h.p_vaddr + h.p_memsz) as usize;
            // SAFETY: nobody writes to these pages, so each is as its file has it when it is mapped again.
            unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
        }
        0
    }
    // SAFETY: sysconf reads a constant; the callback is called before dl_iterate_phdr returns.
    unsafe {
        let page = libc::sysconf(libc::_SC_PAGESIZE).max(4096);
        libc::dl_iterate_phdr(Some(forget), page as *mut libc::c_void);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_comes_again() {
        let said = || format!("{:?} {}", std::env::args().next(), 1.5);
        let before = said();
        forget_start();
        assert_eq!(before, said());
    }

    #[test]
    fn advice_changes_no_content() {
        let mut table: Vec<u64> = Vec::with_capacity(3 * HUGE / 8);
        assert!((1..=3).contains(&huge_pages(&table)));
        table.extend(0..(HUGE / 4) as u64);
        want_huge(&table, 1);
        for page in 0..4 {
            make_huge(&table, page);
        }
        assert!(!make_huge(&table, 4), "beyond its end");
        table.extend((HUGE / 4) as u64..(3 * HUGE / 8) as u64);
        assert!(table.iter().enumerate().all(|(i, v)| i as u64 == *v));
        let small: Vec<u64> = vec![1; 10];
        want_huge(&small, 0);
        assert!(huge_pages(&small) == 0 && !make_huge(&small, 0));
    }
}
