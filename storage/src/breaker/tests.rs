use super::*;

#[test]
fn it_opens_tries_and_closes() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut breaker = Breaker::default();
    for _ in 0..FAILURES_MAX - 1 {
        assert!(breaker.enter(start));
        breaker.failed(start);
    }
    // One success, and the count begins again.
    breaker.succeeded();
    for _ in 0..FAILURES_MAX {
        assert!(breaker.enter(start));
        breaker.failed(start);
    }
    assert!(!breaker.enter(start));
    assert_eq!(breaker.name(start), "open");
    // Of many calls one tries, for longer and longer.
    assert!(breaker.enter(after(1)));
    assert!(!breaker.enter(after(1)));
    assert_eq!(breaker.name(after(1)), "half-open");
    breaker.failed(after(1));
    assert!(!breaker.enter(after(2)));
    assert!(breaker.enter(after(3)));
    breaker.succeeded();
    assert!(breaker.enter(after(3)) && breaker.enter(after(3)));
    assert_eq!(breaker.name(after(3)), "closed");
}

#[test]
fn it_is_not_open_for_ever() {
    let mut now = Instant::now();
    let mut breaker = Breaker::default();
    for _ in 0..FAILURES_MAX {
        breaker.failed(now);
    }
    for _ in 0..20 {
        now += OPEN.1;
        assert!(breaker.enter(now));
        breaker.failed(now);
    }
    // Calls that were under way when it opened change nothing.
    breaker.failed(now);
    now += OPEN.1;
    // A trial whose end is never told does not keep others out.
    assert!(breaker.enter(now));
    assert!(!breaker.enter(now + TRIAL / 2));
    assert!(breaker.enter(now + TRIAL));
}
