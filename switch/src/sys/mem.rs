//! How large tables are backed: by huge pages, so that a look-up costs a cache miss and not a walk through page tables as well.
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

#[cfg(test)]
mod tests {
    use super::*;

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
