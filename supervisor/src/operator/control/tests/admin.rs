//! The admin address: reads only, moved live; and the end of the thread.

use std::net::TcpListener;

use super::*;
use crate::host::run_dir::remove_control;

fn is_served(address: SocketAddr) -> bool {
    tcp(address).ask("GET", "/").status == 200
}

#[test]
fn the_admin_address_only_reads() {
    let mut rig = Rig::answering();
    let mut client = rig.admin_client();
    assert!(client.ask("GET", "/metrics").body.contains("holdfast_level"));
    assert!(client.ask("GET", "/health").body.contains("full"));
    assert!(client.ask("GET", "/").body.starts_with("Holdfast "));
    for path in ["/totals", "/workers", "/config", "/limits", "/reload", "/drain", "/stop"] {
        for method in ["GET", "POST"] {
            let reply = client.ask(method, path);
            assert_eq!(reply.status, 404, "{method} {path}");
            assert!(reply.error().ends_with("only GET /metrics, GET /health"), "{}", reply.error());
        }
    }
    assert_eq!(client.ask("POST", "/health").status, 405);
    assert_eq!(client.ask("DELETE", "/").status, 405);
}

#[test]
fn the_admin_address_moves_and_goes() {
    let mut rig = Rig::answering();
    let old = rig.control().admin_address().unwrap();
    let new = rig.control().rebind(Some("127.0.0.2:0".parse().unwrap())).unwrap().unwrap();
    assert_eq!(rig.control().admin_address(), Some(new));
    assert!(is_served(new));
    assert!(TcpStream::connect(old).is_err(), "the old one is closed before rebind returns");

    assert_eq!(rig.control().rebind(None).unwrap(), None);
    assert!(TcpStream::connect(new).is_err());
    let back = rig.control().rebind(Some("127.0.0.1:0".parse().unwrap())).unwrap().unwrap();
    assert!(is_served(back));
    assert_eq!(
        rig.control().rebind(Some("127.0.0.1:0".parse().unwrap())).unwrap(),
        Some(back),
        "no change, no move"
    );
}

#[test]
fn the_admin_address_can_widen_on_its_own_port() {
    let mut rig = Rig::answering();
    let port = rig.control().admin_address().unwrap().port();
    let everywhere = SocketAddr::from(([0, 0, 0, 0], port));
    assert_eq!(rig.control().rebind(Some(everywhere)).unwrap(), Some(everywhere));
    assert!(is_served(SocketAddr::from(([127, 0, 0, 3], port))));
}

#[test]
fn a_rebind_that_fails_keeps_the_old_address() {
    let mut rig = Rig::answering();
    let old = rig.control().admin_address().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = rig.control().rebind(Some(taken.local_addr().unwrap())).unwrap_err();
    assert!(error.to_string().contains(&taken.local_addr().unwrap().to_string()), "{error}");
    assert_eq!(rig.control().admin_address(), Some(old));
    assert!(is_served(old));

    // The same port on another address of this host: the wildcard cannot be had, even once ours is closed.
    let _neighbour = TcpListener::bind(("127.0.0.4", old.port())).unwrap();
    let everywhere = SocketAddr::from(([0, 0, 0, 0], old.port()));
    assert!(matches!(rig.control().rebind(Some(everywhere)), Err(Error::BindAdmin { .. })));
    assert_eq!(rig.control().admin_address(), Some(old));
    assert!(is_served(old));
}

#[test]
fn stopping_delivers_what_was_answered_and_closes_the_rest() {
    let mut rig = Rig::new(QUEUE, Deadlines::default());
    let idle = rig.client();
    let mut asking = rig.client();
    asking.send(b"POST /stop HTTP/1.1\r\n\r\n");
    rig.take().reply.send(canned(Command::Stop));
    rig.control.take().unwrap().stop();
    assert_eq!(asking.reply().body, r#"{"message":"stopping","connections":7}"#);
    assert_eq!(asking.rest(), "");
    assert_eq!(idle.rest(), "");
    assert!(UnixStream::connect(rig.path()).is_err());
}

#[test]
fn who_comes_while_it_has_left_waits_and_is_served() {
    let mut rig = Rig::answering();
    let admin = rig.control().admin_address().unwrap();
    rig.leave();
    let mut waiting = (rig.client(), tcp(admin));
    waiting.0.send(b"GET / HTTP/1.1\r\n\r\n");
    waiting.1.send(b"GET / HTTP/1.1\r\n\r\n");
    rig.start_again();
    assert_eq!(rig.control().admin_address(), Some(admin));
    assert_eq!((waiting.0.reply().status, waiting.1.reply().status), (404, 200));
}

#[test]
fn the_admin_address_moves_while_nobody_serves_it() {
    let mut rig = Rig::answering();
    rig.leave();
    let new = rig.control().rebind(Some("127.0.0.2:0".parse().unwrap())).unwrap().unwrap();
    rig.start_again();
    assert!(is_served(new));
}

#[test]
fn listeners_are_taken_over_if_they_are_what_is_wanted() {
    let place = tempfile::tempdir().unwrap();
    let wanted = Some("127.0.0.1:0".parse().unwrap());
    let first = Sockets::bind(place.path(), wanted, InheritedSockets::default()).unwrap();
    let address = |sockets: &Sockets| sockets.copies().unwrap().1.unwrap().local_addr().unwrap();
    let copies = || {
        let (control, admin) = first.copies().unwrap();
        InheritedSockets { control: Some(control.into()), admin: admin.map(Into::into) }
    };
    let _waiting = UnixStream::connect(socket_path(place.path())).unwrap();
    let second = Sockets::bind(place.path(), wanted, copies()).unwrap();
    assert_eq!(address(&second), address(&first));
    second.copies().unwrap().0.accept().expect("the one that waited");

    let elsewhere = Some("127.0.0.2:0".parse().unwrap());
    let third = Sockets::bind(place.path(), elsewhere, copies()).unwrap();
    assert_ne!(address(&third), address(&first));
    let nonsense =
        InheritedSockets { control: Some(TcpListener::bind("127.0.0.1:0").unwrap().into()), admin: None };
    drop(Sockets::bind(place.path(), None, nonsense).unwrap());
}

#[test]
fn the_next_supervisor_can_bind_after_a_stop() {
    let mut rig = Rig::answering();
    rig.control.take().unwrap().stop();
    let _next = bind_control(rig.dir.path()).unwrap();
    remove_control(rig.dir.path());
    assert!(!rig.path().exists());
}
