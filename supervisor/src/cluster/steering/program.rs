//! From weights to the program that the kernel runs on each SYN: its answer is the slot. Pure.
//!
//! Programs run forwards only, a compare or two for each slot, and have no memory from one client to the
//! next.

use std::net::SocketAddr;

use holdfast_shared::config::Balance;
use holdfast_shared::sys::steering::opcode::{
    ADD, COPY_TO_X, DIVIDE, JUMP, JUMP_AT_LEAST, JUMP_EQUAL, LOAD, LOAD_SCRATCH, MODULO, MULTIPLY, RETURN,
    RETURN_A, SHIFT_RIGHT, STORE_SCRATCH, XOR_X,
};
use holdfast_shared::sys::steering::{IP_HEADER, Instruction, MAX_INSTRUCTIONS, RANDOM};

use super::weights::Weights;

/// An answer that is no slot: the kernel then hashes.
pub(super) const KERNELS_CHOICE: u32 = u32::MAX;

/// The source address in an IPv4 header (RFC 791, section 3.1).
const IPV4_SOURCE: u32 = IP_HEADER + 12;
/// The source address in an IPv6 header (RFC 8200, section 3), of which the first half is the network.
const IPV6_SOURCE: u32 = IP_HEADER + 8;

/// The program for the group that listens on `address`.
pub(super) fn build(balance: Balance, weights: &Weights, address: SocketAddr) -> Vec<Instruction> {
    match balance {
        Balance::Kernel | Balance::LeastConnections => weighted(weights),
        Balance::SourceAddress => by_source(weights, address.is_ipv6()),
    }
}

/// A random slot, each as often as its weight says: a number below the sum falls into one slot's stretch.
fn weighted(weights: &Weights) -> Vec<Instruction> {
    let mut program = vec![Instruction::new(LOAD, RANDOM), Instruction::new(MODULO, weights.sum())];
    let mut end = 0_u32;
    for (slot, &weight) in (0..).zip(weights.as_slice()) {
        if weight > 0 {
            end = end.saturating_add(weight);
            program.push(Instruction::skip_next_if(JUMP_AT_LEAST, end));
            program.push(Instruction::new(RETURN, slot));
        }
    }
    program.push(Instruction::new(RETURN, KERNELS_CHOICE));
    program
}

/// The slot that the client's address always falls on. Addresses of slots with weight zero go to one of the
/// others, each always to the same; nobody else moves.
fn by_source(weights: &Weights, is_ipv6: bool) -> Vec<Instruction> {
    let slots = weights.as_slice();
    let out: Vec<u32> = (0..).zip(slots).filter(|(_, weight)| **weight == 0).map(|(slot, _)| slot).collect();
    let all = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    let serving = u32::try_from(slots.len() - out.len()).unwrap_or(u32::MAX);

    let mut program = if is_ipv6 { hash_ipv6() } else { hash_ipv4() };
    program.push(Instruction::new(STORE_SCRATCH, 0));
    program.push(Instruction::new(MODULO, all));
    // One that is out jumps behind the return; over what is left of this list, two instructions a slot, and
    // the return.
    for (&slot, after) in out.iter().zip((0..out.len()).rev()) {
        program.push(Instruction::skip_next_unless(JUMP_EQUAL, slot));
        program.push(Instruction::new(JUMP, u32::try_from(2 * after + 1).unwrap_or(u32::MAX)));
    }
    program.push(Instruction::new(RETURN_A, 0));
    if out.is_empty() {
        return program;
    }
    // What the first division left over chooses the n-th of the slots that serve ...
    program.push(Instruction::new(LOAD_SCRATCH, 0));
    program.push(Instruction::new(DIVIDE, all));
    program.push(Instruction::new(MODULO, serving));
    // ... and each slot before it that is out moves it up by one.
    for &slot in &out {
        program.push(Instruction::skip_next_unless(JUMP_AT_LEAST, slot));
        program.push(Instruction::new(ADD, 1));
    }
    program.push(Instruction::new(RETURN_A, 0));
    if program.len() > MAX_INSTRUCTIONS {
        return vec![Instruction::new(RETURN, KERNELS_CHOICE)];
    }
    program
}

fn hash_ipv4() -> Vec<Instruction> {
    let mut program = vec![Instruction::new(LOAD, IPV4_SOURCE)];
    program.extend(mix());
    program
}

fn hash_ipv6() -> Vec<Instruction> {
    let mut program = vec![Instruction::new(LOAD, IPV6_SOURCE)];
    program.extend(mix());
    program.push(Instruction::new(COPY_TO_X, 0));
    program.push(Instruction::new(LOAD, IPV6_SOURCE + 4));
    program.push(Instruction::new(XOR_X, 0));
    program.extend(mix());
    program
}

/// The finaliser of MurmurHash3: every bit of A depends on every other, so neighbours among addresses spread
/// evenly.
fn mix() -> impl Iterator<Item = Instruction> {
    let fold = |bits| [(COPY_TO_X, 0), (SHIFT_RIGHT, bits), (XOR_X, 0)];
    let multiply = |factor| [(MULTIPLY, factor)];
    let steps = fold(16)
        .into_iter()
        .chain(multiply(0x85eb_ca6b))
        .chain(fold(13))
        .chain(multiply(0xc2b2_ae35))
        .chain(fold(16));
    steps.map(|(code, constant)| Instruction::new(code, constant))
}
