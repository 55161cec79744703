//! Programs are run by a small interpreter of classic BPF here, and once by the kernel itself.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use holdfast_shared::sys::steering::opcode::{
    ADD, COPY_TO_X, DIVIDE, JUMP, JUMP_AT_LEAST, JUMP_EQUAL, LOAD, LOAD_SCRATCH, MODULO, MULTIPLY, RETURN,
    RETURN_A, SHIFT_RIGHT, STORE_SCRATCH, XOR_X,
};
use holdfast_shared::sys::steering::{IP_HEADER, Instruction, MAX_INSTRUCTIONS, RANDOM};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use socket2::{Domain, Socket, Type};

use super::program::{KERNELS_CHOICE, build};
use super::*;
use crate::cluster::listeners::Listeners;

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

/// Runs `program` on a packet from `source`.
fn run(program: &[Instruction], random: u32, source: IpAddr) -> u32 {
    let (offset, bytes) = match source {
        IpAddr::V4(address) => (12, address.octets().to_vec()),
        IpAddr::V6(address) => (8, address.octets().to_vec()),
    };
    let word = |constant: u32| {
        let at = usize::try_from(constant - IP_HEADER).unwrap() - offset;
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    };
    let (mut a, mut x, mut scratch, mut next) = (0_u32, 0_u32, [0_u32; 16], 0);
    loop {
        let Instruction { code, jump_true, jump_false, constant } = program[next];
        let branch = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
        next += 1;
        match code {
            LOAD if constant == RANDOM => a = random,
            LOAD => a = word(constant),
            LOAD_SCRATCH => a = scratch[usize::try_from(constant).unwrap()],
            STORE_SCRATCH => scratch[usize::try_from(constant).unwrap()] = a,
            COPY_TO_X => x = a,
            ADD => a = a.wrapping_add(constant),
            MULTIPLY => a = a.wrapping_mul(constant),
            DIVIDE => a /= constant,
            MODULO => a %= constant,
            SHIFT_RIGHT => a >>= constant,
            XOR_X => a ^= x,
            JUMP => next += usize::try_from(constant).unwrap(),
            JUMP_EQUAL => next += branch(a == constant),
            JUMP_AT_LEAST => next += branch(a >= constant),
            RETURN => return constant,
            RETURN_A => return a,
            _ => panic!("no such instruction: {code:#x}"),
        }
    }
}

fn load(held: u64) -> Load {
    Load { held, coming: 0, serves: true, retires: false }
}

fn loads() -> impl Strategy<Value = Vec<Load>> {
    let load = (0..20_000u64, 0..100u64, prop::bool::weighted(0.8));
    vec(load.prop_map(|(held, coming, serves)| Load { held, coming, serves, retires: false }), 1..20)
}

fn serving() -> impl Strategy<Value = Vec<Load>> {
    vec(any::<bool>().prop_map(|serves| Load { serves, ..load(0) }), 1..40)
        .prop_filter("one must serve", |loads| loads.iter().any(|load| load.serves))
}

/// Where a client from `source` goes.
fn home(loads: &[Load], source: IpAddr) -> usize {
    let address = SocketAddr::new(source, 1);
    let program = build(Balance::SourceAddress, &Weights::equal(loads).unwrap(), address);
    usize::try_from(run(&program, 0, source)).unwrap()
}

proptest! {
    #[test]
    fn every_slot_is_drawn_exactly_as_often_as_its_weight_says(loads in loads(), volume in 1..2_000u64) {
        let Some(weights) = Weights::by_load(&loads, volume) else {
            prop_assert!(loads.iter().all(|load| !load.serves));
            return Ok(());
        };
        let program = build(Balance::LeastConnections, &weights, V4.parse().unwrap());
        let mut drawn = vec![0; loads.len()];
        for random in 0..weights.sum() {
            drawn[usize::try_from(run(&program, random, Ipv4Addr::LOCALHOST.into())).unwrap()] += 1;
        }
        prop_assert_eq!(&drawn[..], weights.as_slice());
    }

    #[test]
    fn weights_bring_the_emptiest_to_one_level(loads in loads(), volume in 1..100_000u64) {
        let Some(weights) = Weights::by_load(&loads, volume) else { return Ok(()) };
        let sum = u64::from(weights.sum());
        prop_assert!((volume..volume + loads.len() as u64).contains(&sum), "{} for {}", sum, volume);
        let filled = |(load, weight): (&Load, &u32)| load.all() + u64::from(*weight);
        let with = || loads.iter().zip(weights.as_slice());
        let level = with().filter(|(_, weight)| **weight > 0).map(filled).max().unwrap();
        for (load, &weight) in with() {
            if !load.serves {
                prop_assert_eq!(weight, 0, "a slot that does not serve");
            } else if weight > 0 {
                prop_assert_eq!(load.all() + u64::from(weight), level);
            } else {
                prop_assert!(load.all() >= level, "{:?} is below {} and gets nothing", load, level);
            }
        }
    }

    #[test]
    fn an_empty_slot_fills_up_with_as_many_clients_as_it_lacks(
        level in 400..3_000u64, slots in 2..8usize, randoms in vec(any::<u32>(), 3_000), renewals in 10..100usize,
    ) {
        let mut loads = vec![load(level); slots];
        loads[slots / 2].held = 0;
        let gap = usize::try_from(level).unwrap();
        let batch = gap / renewals;
        for randoms in randoms[..gap].chunks(batch) {
            let weights = Weights::by_load(&loads, weights::volume(&loads, batch as u64)).unwrap();
            let program = build(Balance::LeastConnections, &weights, V4.parse().unwrap());
            for &random in randoms {
                let slot = run(&program, random, Ipv4Addr::LOCALHOST.into());
                loads[usize::try_from(slot).unwrap()].held += 1;
            }
        }
        let least = loads.iter().map(|load| load.held).min().unwrap();
        let most = loads.iter().map(|load| load.held).max().unwrap();
        prop_assert!((most - least) * 10 <= most, "{:?}", loads);
    }

    #[test]
    fn an_address_stays_home_while_its_slot_serves_and_else_always_goes_to_the_same(
        loads in serving(), v4 in any::<Ipv4Addr>(), v6 in any::<Ipv6Addr>(), out in any::<Index>(),
    ) {
        for source in [v4.into(), v6.into()] {
            let whole: Vec<Load> = loads.iter().map(|_| load(0)).collect();
            let (first, now) = (home(&whole, source), home(&loads, source));
            prop_assert!(loads[now].serves);
            prop_assert!(!loads[first].serves || now == first);
            let mut fewer = loads.clone();
            let leaving = out.index(fewer.len());
            fewer[leaving].serves = false;
            if loads[first].serves && first != leaving {
                prop_assert_eq!(home(&fewer, source), first, "moved although its slot stayed");
            }
        }
    }

    #[test]
    fn a_network_of_64_bits_is_one_client(loads in serving(), network in any::<u64>(), hosts in any::<[u64; 2]>()) {
        let [one, other] = hosts.map(|host| Ipv6Addr::from((u128::from(network) << 64) | u128::from(host)));
        prop_assert_eq!(home(&loads, one.into()), home(&loads, other.into()));
    }
}

#[test]
fn neighbouring_addresses_spread_evenly_also_when_slots_are_out() {
    let mut loads = vec![load(0); 7];
    for out in [vec![], vec![2], vec![0, 6]] {
        out.iter().for_each(|&slot: &usize| loads[slot].serves = false);
        let serving = loads.iter().filter(|load| load.serves).count();
        for family in [0, 1] {
            let mut counts = vec![0; loads.len()];
            for n in 0..7_000u32 {
                let source: IpAddr = match family {
                    0 => Ipv4Addr::from(0x0a00_0000 + n).into(),
                    _ => Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(n) << 64) | 1).into(),
                };
                counts[home(&loads, source)] += 1;
            }
            let fair = 7_000 / serving;
            for (load, count) in loads.iter().zip(&counts).filter(|(load, _)| load.serves) {
                assert!((fair * 8 / 10..fair * 12 / 10).contains(count), "{load:?}: {counts:?}");
            }
        }
    }
}

#[test]
fn a_crowd_finds_even_slots_evenly_weighted() {
    let loads = [load(10_000), load(10_000), load(9_990)];
    let weights = Weights::by_load(&loads, weights::volume(&loads, 0)).unwrap();
    let shares: Vec<u16> = (0..3).map(|slot| weights.share(slot).unwrap()).collect();
    assert!(shares.iter().all(|share| (320..350).contains(share)), "{shares:?}");
}

#[test]
fn shares_are_thousandths() {
    let loads = [load(5), Load { serves: false, ..load(0) }, load(5)];
    let weights = Weights::equal(&loads).unwrap();
    assert_eq!(
        (0..4).map(|slot| weights.share(slot)).collect::<Vec<_>>(),
        [Some(500), Some(0), Some(500), None]
    );
}

#[test]
fn weights_hold_until_their_newcomers_have_come_or_counts_have_moved() {
    let loads = vec![load(3_200), load(3_200)];
    let volume = weights::volume(&loads, 0);
    assert_eq!(volume, 200);
    let made_at = Duration::from_secs(5);
    let least = Balance::LeastConnections;
    let plan = Plan { balance: least, loads, admitted: 7_000, volume, made_at, weights: None };
    let with = |first: u64| [load(first), load(3_200)];
    assert_eq!(plan.expires(least, &with(3_200), 7_000), None);
    assert_eq!(plan.expires(least, &with(3_224), 7_024), None);
    assert_eq!(plan.expires(least, &with(3_225), 7_025), Some(made_at + PERIOD));
    assert_eq!(plan.expires(least, &with(3_175), 7_000), Some(made_at + PERIOD), "leaving counts as well");
    assert_eq!(plan.expires(least, &with(3_400), 7_200), Some(made_at + SHORTEST_PERIOD));
    let down = [Load { serves: false, ..load(3_200) }, load(3_200)];
    assert_eq!(plan.expires(least, &down, 7_000), Some(Duration::ZERO));
    assert_eq!(plan.expires(Balance::Kernel, &with(3_200), 7_000), Some(Duration::ZERO));
}

#[test]
fn as_many_are_expected_as_came_lately() {
    let moment = |turn: u32| SHORTEST_PERIOD * turn;
    let mut pace = Pace::default();
    pace.note(100, moment(100));
    assert_eq!(pace.expected(400), 300, "they count before their period is over");
    pace.note(500, moment(101));
    assert_eq!((pace.expected(500), pace.expected(1_000)), (400, 500));
    pace.note(500, moment(102));
    assert_eq!(pace.expected(500), 200);
    pace.note(500, moment(900));
    assert_eq!(pace.expected(500), 100);
}

#[test]
fn the_kernel_takes_the_programs_of_the_most_slots() {
    let mut loads: Vec<Load> = (0..1024).map(load).collect();
    for serving in [1024, 512, 1] {
        loads.iter_mut().skip(serving).for_each(|load| load.serves = false);
        for listen in [V4, V6] {
            let listeners = Listeners::bind(&[listen.parse().unwrap()], 2, 16).unwrap();
            let (address, member) = listeners.groups().next().unwrap();
            let equal = Weights::equal(&loads).unwrap();
            let least = Weights::by_load(&loads, 1 << 30).unwrap();
            for (balance, weights) in [(Balance::SourceAddress, equal), (Balance::LeastConnections, least)] {
                let program = build(balance, &weights, address);
                assert!(program.len() <= MAX_INSTRUCTIONS);
                attach(member, &program).unwrap();
            }
        }
    }
    let program = build(Balance::SourceAddress, &Weights::equal(&loads).unwrap(), V4.parse().unwrap());
    assert_eq!(run(&program, 0, Ipv4Addr::LOCALHOST.into()), KERNELS_CHOICE, "too long: left to the kernel");
}

/// Steering of one group, at one moment after another.
fn renew(steering: &mut Steering, balance: Balance, loads: &[Load], groups: &Groups<'_>) {
    assert!(steering.is_due(balance, loads, 0, Duration::from_secs(1)));
    steering.renew(balance, loads.to_vec(), 0, Duration::from_secs(1), groups);
    assert!(!steering.is_due(balance, loads, 0, Duration::from_secs(1)));
}

#[test]
fn slots_that_do_not_serve_get_nothing_unless_none_does() {
    let listeners = Listeners::bind(&[V4.parse().unwrap(), V6.parse().unwrap()], 2, 64).unwrap();
    let groups: Vec<_> = listeners.groups().collect();
    let queues = || [0, 1].map(|slot| listeners.accept_queue(SlotId(slot)).length);
    let connect = |clients: usize| -> Vec<_> {
        let addresses = listeners.addresses().iter().cycle();
        addresses.take(clients).map(|address| std::net::TcpStream::connect(address).unwrap()).collect()
    };
    let mut steering = Steering::default();
    let down = Load { serves: false, ..load(0) };
    for balance in [Balance::LeastConnections, Balance::SourceAddress] {
        let before = queues();
        renew(&mut steering, balance, &[down, load(1_000)], &groups);
        assert_eq!((steering.share(SlotId(0)), steering.share(SlotId(1))), (Some(0), Some(1000)));
        let _clients = connect(12);
        assert_eq!(queues(), [before[0], before[1] + 12]);
    }
    renew(&mut steering, Balance::SourceAddress, &[down, down], &groups);
    assert_eq!(steering.share(SlotId(1)), None);
    let before = queues();
    let _clients = connect(40);
    assert!(queues()[0] > before[0] && queues()[1] > before[1], "the kernel's hash has only one slot");
    renew(&mut steering, Balance::Kernel, &[down, load(0)], &groups);
    assert_eq!(steering.share(SlotId(1)), None);
    // One that retires must not get any: the kernel's own hash would send it some.
    let retiring = Load { retires: true, ..down };
    renew(&mut steering, Balance::Kernel, &[retiring, load(0)], &groups);
    assert_eq!((steering.share(SlotId(0)), steering.share(SlotId(1))), (Some(0), Some(1000)));
    let before = queues();
    let _clients = connect(12);
    assert_eq!(queues(), [before[0], before[1] + 12]);
    renew(&mut steering, Balance::Kernel, &[load(0), load(0)], &groups);
    assert_eq!(steering.share(SlotId(1)), None);
}

#[test]
fn where_the_kernel_refuses_its_hash_is_left_to_choose_until_the_next_reload() {
    let alone = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let groups = [(V4.parse().unwrap(), alone.as_fd())];
    let mut steering = Steering::default();
    renew(&mut steering, Balance::LeastConnections, &[load(1), load(0)], &groups);
    assert!(steering.refused);
    assert_eq!(steering.share(SlotId(0)), None);
    let down = Load { serves: false, ..load(0) };
    renew(&mut steering, Balance::LeastConnections, &[load(1), down], &groups);
    assert!(steering.refused, "not asked again: that would be said again");
    steering.reconsider();
    let listeners = Listeners::bind(&[V4.parse().unwrap()], 2, 64).unwrap();
    let groups: Vec<_> = listeners.groups().collect();
    renew(&mut steering, Balance::LeastConnections, &[load(1), down], &groups);
    assert_eq!(steering.share(SlotId(0)), Some(1000));
}
