//! The bpf(2) system call, as far as the fast path needs it: two kinds of maps, programs, links to TCX
//! (include/uapi/linux/bpf.h, kernel/bpf/syscall.c).
//!
//! Maps and programs are file descriptors, and a link holds its program at the interface: all of it goes with the process.

use nix::errno::Errno;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

// enum bpf_cmd.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
// enum bpf_map_type.
const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
/// An array that can be mapped (Linux 5.5).
const F_MMAPABLE: u32 = 1 << 10;
// enum bpf_attach_type.
const TCX_INGRESS: u32 = 46;
/// Bytes of what the verifier says.
const LOG: usize = 64 << 10;

/// What a program is attached to (enum bpf_prog_type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// A filter of a socket.
    SocketFilter = 1,
    /// A classifier of traffic control.
    Classifier = 3,
}

/// One instruction as the kernel takes it (struct bpf_insn); registers in the machine's order of nibbles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    /// Destination in the low nibble, source in the high one.
    pub regs: u8,
    /// Offset of a jump, in instructions, or of an access, in bytes.
    pub off: i16,
    /// Constant.
    pub imm: i32,
}

/// A program was refused.
#[derive(Debug, thiserror::Error)]
#[error("{source}{}{log}", if log.is_empty() { "" } else { ": " })]
pub struct Refused {
    /// Kernel's answer.
    pub source: Errno,
    /// The end of what the verifier says.
    pub log: String,
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    numa: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    insns: u32,
    at: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// The system call. `T` is one of the structures above; what its addresses point at must live across the call and be as long as the
/// command says.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: the kernel reads (and for no command here writes) size_of::<T>() bytes of `attr`, which lives across the call; what it
    // points at is vouched for by the callers, all in this file.
    let r = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>() as libc::c_uint,
        )
    };
    Errno::result(r)
}

fn descriptor(r: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel just gave us this fd, nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(r as libc::c_int) }
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().take(15).zip(text.bytes()) {
        *to = from;
    }
    name
}

/// A hash table in the kernel, from keys of `K` bytes to values of `V` bytes.
#[derive(Debug)]
pub struct Table<const K: usize, const V: usize>(OwnedFd);

impl<const K: usize, const V: usize> Table<K, V> {
    /// An empty table of at most `limit` entries. Errors: EPERM without CAP_BPF.
    pub fn new(text: &str, limit: u32) -> Result<Self, Errno> {
        let mut attr = MapCreate {
            kind: MAP_TYPE_HASH,
            key_size: K as u32,
            value_size: V as u32,
            max_entries: limit,
            name: name(text),
            ..MapCreate::default()
        };
        bpf(MAP_CREATE, &mut attr).map(|r| Table(descriptor(r)))
    }

    /// Enters a value, in place of the one that is there. Errors: E2BIG when it is full.
    pub fn set(&self, key: &[u8; K], value: &[u8; V]) -> Result<(), Errno> {
        let mut attr = self.element(key, value.as_ptr() as u64);
        bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
    }

    /// The value of a key. Errors: ENOENT.
    pub fn get(&self, key: &[u8; K]) -> Result<[u8; V], Errno> {
        let mut value = [0; V];
        let mut attr = self.element(key, value.as_mut_ptr() as u64);
        bpf(MAP_LOOKUP_ELEM, &mut attr)?;
        Ok(value)
    }

    /// Removes a key. Errors: ENOENT.
    pub fn remove(&self, key: &[u8; K]) -> Result<(), Errno> {
        let mut attr = self.element(key, 0);
        bpf(MAP_DELETE_ELEM, &mut attr).map(drop)
    }

    /// The key behind this one, or the first; ENOENT behind the last. Behind one that isn't there any more it is the first.
    pub fn next(&self, key: Option<&[u8; K]>) -> Result<[u8; K], Errno> {
        let mut next = [0; K];
        let mut attr = self.element(key.unwrap_or(&[0; K]), next.as_mut_ptr() as u64);
        if key.is_none() {
            attr.key = 0;
        }
        bpf(MAP_GET_NEXT_KEY, &mut attr)?;
        Ok(next)
    }

    fn element(&self, key: &[u8; K], value: u64) -> Element {
        Element {
            map: raw(&self.0),
            key: key.as_ptr() as u64,
            value,
            ..Element::default()
        }
    }
}

impl<const K: usize, const V: usize> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Words that programs and we share: a map of one value, mapped into our memory.
#[derive(Debug)]
pub struct Words {
    fd: OwnedFd,
    at: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is only reached through atomics, and stays where it is until drop.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// So many words, all zero. Errors: EPERM without CAP_BPF, EINVAL before Linux 5.5.
    pub fn new(text: &str, words: usize) -> Result<Words, Errno> {
        let len = words * size_of::<u64>();
        let mut attr = MapCreate {
            kind: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: len as u32,
            max_entries: 1,
            flags: F_MMAPABLE,
            name: name(text),
            ..MapCreate::default()
        };
        let fd = bpf(MAP_CREATE, &mut attr).map(descriptor)?;
        // SAFETY: a new mapping at an address of the kernel's choice; the map has room for `len` bytes, rounded up to pages.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let at = NonNull::new(at.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Words { fd, at, words })
    }

    /// A word; `None` beyond the last.
    #[must_use]
    pub fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.words {
            return None;
        }
        // SAFETY: within the mapping, aligned as a page is, and the mapping lives as long as `self`; zeros are valid atomics.
        Some(unsafe { self.at.add(index).as_ref() })
    }

    /// The present value of a word; 0 beyond the last.
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        self.word(index).map_or(0, |w| w.load(Ordering::SeqCst))
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: our mapping, of this length; no reference to it outlives `self`.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}

/// Has the kernel check a program and take it. Errors: EPERM without CAP_BPF and CAP_NET_ADMIN; EACCES or EINVAL with the verifier's
/// log.
pub fn load(kind: ProgramKind, text: &str, program: &[Insn]) -> Result<OwnedFd, Refused> {
    let mut attr = ProgLoad {
        kind: kind as u32,
        insns: program.len() as u32,
        at: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name: name(text),
        ..ProgLoad::default()
    };
    let first = match bpf(PROG_LOAD, &mut attr) {
        Ok(r) => return Ok(descriptor(r)),
        Err(e) => e,
    };
    // Once more, for what there is to say about it.
    let mut log = vec![0u8; LOG];
    attr.log_level = 1;
    attr.log_size = LOG as u32;
    attr.log = log.as_mut_ptr() as u64;
    let source = match bpf(PROG_LOAD, &mut attr) {
        Ok(r) => return Ok(descriptor(r)),
        Err(Errno::ENOSPC) => first,
        Err(e) => e,
    };
    let said = log.split(|b| *b == 0).next().unwrap_or_default();
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.lines().filter(|l| !l.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(4)..);
    Err(Refused {
        source,
        log: last.unwrap_or_default().join("; "),
    })
}

/// Attaches a classifier where an interface of the calling thread's namespace receives, behind those that are there (TCX, Linux 6.6).
/// It stays until the returned link is closed.
pub fn attach_ingress(program: impl AsFd, interface: u32) -> Result<OwnedFd, Errno> {
    let mut attr = LinkCreate {
        program: raw(program),
        interface,
        attach_type: TCX_INGRESS,
        ..LinkCreate::default()
    };
    bpf(LINK_CREATE, &mut attr).map(descriptor)
}

/// Has a socket filter decide what a socket gets.
pub fn attach_filter(socket: impl AsFd, program: impl AsFd) -> Result<(), Errno> {
    let fd: libc::c_int = program.as_fd().as_raw_fd();
    // SAFETY: setsockopt reads the int, which lives across the call.
    let r = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            (&raw const fd).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(r).map(drop)
}
