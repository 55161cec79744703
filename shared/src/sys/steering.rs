//! Telling the kernel which socket of a SO_REUSEPORT group gets the next client: a classic BPF program that
//! returns an index into the group. It needs no privilege, is checked by the kernel before it is used, and is
//! swapped while clients arrive. What a program decides is not known here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// What instructions do, as the kernel's classic BPF encodes it. `A` is the accumulator, `X` the other
/// register, `K` the instruction's constant.
pub mod opcode {
    use libc::{
        BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_DIV, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_MEM,
        BPF_MISC, BPF_MOD, BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_TAX, BPF_W, BPF_X, BPF_XOR,
    };

    const fn code(bits: u32) -> u16 {
        // Classic BPF's codes are bytes in a 16-bit field.
        (bits & 0xff) as u16
    }

    /// A = the 32 bits at `K` of the packet, in network byte order. See [`RANDOM`](super::RANDOM) and
    /// [`IP_HEADER`](super::IP_HEADER).
    pub const LOAD: u16 = code(BPF_LD | BPF_W | BPF_ABS);
    /// A = word `K` of the scratch memory
    pub const LOAD_SCRATCH: u16 = code(BPF_LD | BPF_MEM);
    /// word `K` of the scratch memory = A
    pub const STORE_SCRATCH: u16 = code(BPF_ST);
    /// X = A
    pub const COPY_TO_X: u16 = code(BPF_MISC | BPF_TAX);
    /// A += K
    pub const ADD: u16 = code(BPF_ALU | BPF_ADD | BPF_K);
    /// A *= K
    pub const MULTIPLY: u16 = code(BPF_ALU | BPF_MUL | BPF_K);
    /// A /= K
    pub const DIVIDE: u16 = code(BPF_ALU | BPF_DIV | BPF_K);
    /// A %= K
    pub const MODULO: u16 = code(BPF_ALU | BPF_MOD | BPF_K);
    /// A >>= K
    pub const SHIFT_RIGHT: u16 = code(BPF_ALU | BPF_RSH | BPF_K);
    /// A ^= X
    pub const XOR_X: u16 = code(BPF_ALU | BPF_XOR | BPF_X);
    /// Skips `K` instructions.
    pub const JUMP: u16 = code(BPF_JMP | BPF_JA);
    /// Skips `jump_true` instructions if A = K, else `jump_false`.
    pub const JUMP_EQUAL: u16 = code(BPF_JMP | BPF_JEQ | BPF_K);
    /// Skips `jump_true` instructions if A >= K, else `jump_false`.
    pub const JUMP_AT_LEAST: u16 = code(BPF_JMP | BPF_JGE | BPF_K);
    /// The answer is K.
    pub const RETURN: u16 = code(BPF_RET | BPF_K);
    /// The answer is A.
    pub const RETURN_A: u16 = code(BPF_RET | BPF_A);
}

/// For [`opcode::LOAD`]: not in the packet, but a random number, a new one each time.
pub const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
/// For [`opcode::LOAD`]: where the packet's IP header begins.
pub const IP_HEADER: u32 = libc::SKF_NET_OFF.cast_unsigned();
/// The longest program the kernel takes, in instructions.
pub const MAX_INSTRUCTIONS: usize = libc::BPF_MAXINSNS.cast_unsigned() as usize;

/// One instruction of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do: one of [`opcode`].
    pub code: u16,
    /// How many instructions a jump skips when its condition holds.
    pub jump_true: u8,
    /// ... and when it does not.
    pub jump_false: u8,
    /// The constant it works with.
    pub constant: u32,
}

impl Instruction {
    /// One that goes on with the next.
    #[must_use]
    pub const fn new(code: u16, constant: u32) -> Self {
        Self { code, jump_true: 0, jump_false: 0, constant }
    }

    /// A jump that may skip the next one.
    #[must_use]
    pub const fn skip_next_if(code: u16, constant: u32) -> Self {
        Self { code, jump_true: 1, jump_false: 0, constant }
    }

    /// A jump that may skip all but the next one.
    #[must_use]
    pub const fn skip_next_unless(code: u16, constant: u32) -> Self {
        Self { code, jump_true: 0, jump_false: 1, constant }
    }
}

/// Lets `program` choose the socket of every client to come, for the whole group that `member` is in. It runs
/// on each SYN and answers with a socket's place in the group, the order in which the sockets began to
/// listen. When the answer is no such place, the kernel hashes as it does without a program.
///
/// # Errors
/// What the kernel says: `EINVAL` for a program that may read or jump out of bounds, or a socket in no group;
/// `ENOMEM` for one larger than `net.core.optmem_max`; `ENOPROTOOPT` from a kernel older than 4.6; `EPERM`
/// where the system call is filtered.
pub fn attach(member: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program.iter().map(encode).collect();
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from(Errno::EINVAL))?;
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: `program` is a sock_fprog, and its pointer leads to `len` instructions; both outlive the call.
    // The kernel copies them and verifies the copy; it writes to neither.
    let result = unsafe {
        libc::setsockopt(
            member.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Leaves the choice to the kernel again, for the whole group. Does nothing if it has it.
///
/// # Errors
/// What the kernel says, such as `ENOPROTOOPT` from one older than 5.3.
pub fn detach(member: BorrowedFd<'_>) -> io::Result<()> {
    let ignored: libc::c_int = 0;
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the option takes no value; the kernel reads an int all the same, and `ignored` is one.
    let result = unsafe {
        libc::setsockopt(
            member.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            (&raw const ignored).cast(),
            size,
        )
    };
    match Errno::result(result) {
        // ENOENT: the group has no program (reuseport_detach_prog in net/core/sock_reuseport.c).
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn encode(instruction: &Instruction) -> libc::sock_filter {
    libc::sock_filter {
        code: instruction.code,
        jt: instruction.jump_true,
        jf: instruction.jump_false,
        k: instruction.constant,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpStream};
    use std::os::fd::AsFd;

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::sys::listener::accept_queue;

    fn listener(address: SocketAddr) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(64).unwrap();
        socket
    }

    /// Three sockets of one address.
    fn group() -> (Vec<Socket>, SocketAddr) {
        let first = listener((Ipv4Addr::LOCALHOST, 0).into());
        let address = first.local_addr().unwrap().as_socket().unwrap();
        (vec![first, listener(address), listener(address)], address)
    }

    /// How twenty new clients are spread.
    fn spread(group: &[Socket], address: SocketAddr) -> Vec<u32> {
        let queued = || group.iter().map(|socket| accept_queue(socket.as_raw_fd()).unwrap().length);
        let before: Vec<u32> = queued().collect();
        let _clients: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
        queued().zip(before).map(|(after, before)| after - before).collect()
    }

    #[test]
    fn the_program_chooses_by_the_order_of_listening() {
        let (group, address) = group();
        for (place, expected) in [[20, 0, 0], [0, 20, 0], [0, 0, 20]].iter().enumerate() {
            let answer = Instruction::new(opcode::RETURN, u32::try_from(place).unwrap());
            attach(group[0].as_fd(), &[answer]).unwrap();
            assert_eq!(spread(&group, address), expected);
        }
    }

    #[test]
    fn without_a_program_or_a_usable_answer_the_kernel_hashes() {
        let (group, address) = group();
        detach(group[0].as_fd()).unwrap();
        attach(group[1].as_fd(), &[Instruction::new(opcode::RETURN, u32::MAX)]).unwrap();
        assert!(spread(&group, address).iter().all(|&share| share < 20));
        attach(group[1].as_fd(), &[Instruction::new(opcode::RETURN, 1)]).unwrap();
        detach(group[2].as_fd()).unwrap();
        assert!(spread(&group, address).iter().all(|&share| share < 20));
    }

    #[test]
    fn a_program_that_may_run_astray_is_refused() {
        let (group, _) = group();
        for program in [&[][..], &[Instruction::new(opcode::JUMP, 5)], &[Instruction::new(opcode::ADD, 1)]] {
            assert_eq!(attach(group[0].as_fd(), program).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        }
    }

    #[test]
    fn a_socket_in_no_group_is_refused() {
        let alone = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let program = [Instruction::new(opcode::RETURN, 0)];
        assert_eq!(attach(alone.as_fd(), &program).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
