//! Containers, launchers and daemons come and go.

use crate::rig::{FAR, serve, site};
use nix::sys::signal::Signal;
use vswitch_tests::{tap_lab, wait_until};

#[test]
fn a_command_ends_as_it_would_and_leaves_nothing() {
    let lab = tap_lab!("switching-life");
    let mut s = site(&lab);
    let _server = serve(&s.outside, "7000");
    let code = |s: &crate::rig::Site, argv: &[&str]| {
        s.start(argv)
            .finish(std::time::Duration::from_secs(20))
            .code
    };
    assert_eq!(code(&s, &["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&s, &["sh", "-c", "kill -TERM $$"]), Some(128 + 15));
    assert_eq!(code(&s, &["no-such-program"]), Some(127));
    // Signals are passed on.
    let mut waiting = s.start(&[
        "sh",
        "-c",
        "trap 'echo told; exit 3' TERM; echo here; while :; do sleep 0.1; done",
    ]);
    waiting.wait_for("here");
    waiting.signal(Signal::SIGTERM);
    waiting.wait_for("told");
    // What is left of a container that is killed is nothing.
    let mut under_way = s.start_client(&["until_gone", FAR[0], "7000"]);
    under_way.wait_for("began");
    wait_until("it is shown", || s.connections().len() == 1);
    assert_eq!(s.counts()["listeners"], 1, "{}", s.counts());
    s.a.kill();
    wait_until("its connection has ended", || s.connections().is_empty());
    wait_until("nobody is answered", || s.counts()["listeners"] == 0);
    drop(under_way);
}

#[test]
fn a_daemon_that_goes_leaves_the_network_and_the_next_one_takes_up() {
    let lab = tap_lab!("switching-restart");
    let mut s = site(&lab);
    let _server = serve(&s.outside, "7000");
    let mut calm = s.start_client(&["again_and_again", FAR[0], "7000"]);
    calm.wait_for("connected");
    assert!(s.switched() > 0);
    // Killed: there is no network either, but a call is answered, as ENOSYS would not be.
    s.d.kill();
    wait_until("it goes by the network", || {
        calm.output().lines().count() > 1
    });
    s.d.restart();
    wait_until("the next daemon has the listener", || s.switched() > 0);
    wait_until("all is well", || {
        calm.output().lines().last() == Some("connected")
    });
    assert!(!calm.output().contains("ENOSYS"), "{}", calm.output());
    // In good order, too.
    let said = calm.output().lines().count();
    s.d.stop();
    wait_until("it goes by the network", || {
        calm.output().lines().count() > said
    });
    assert!(!calm.output().contains("ENOSYS"), "{}", calm.output());
}
