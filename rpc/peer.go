package rpc

import "time"

// peer is an instance of a server, as a client sees it (instance.go has the server's side). The methods decide when to probe the
// instance, and when it counts as lost. Client.mu guards the fields.
type peer struct {
	id    string
	heard time.Time // when the last message from the instance came

	probed     time.Time // when the last probe was sent
	probing    bool      // the last probe has no outcome yet
	unanswered time.Time // when the first unanswered probe was sent; zero: no probe is unanswered
	gone       time.Time // the send time of the first probe in a row that found no topic; zero: the last probe found the topic
	goneUntil  time.Time // the send time of the last probe that found no topic
	paused     bool      // probes were unanswered for more than pausedAfter before the topic disappeared
}

// hear records that a message came from the instance.
func (p *peer) hear(now time.Time) {
	p.heard, p.unanswered, p.gone, p.paused = now, time.Time{}, time.Time{}, false
}

// probeDue reports whether the instance must be probed now. This is so if the last probe found no topic. It is also so if the client
// has neither heard from the instance nor probed it for at least the duration of the parameter quiet.
func (p *peer) probeDue(now time.Time, quiet time.Duration) bool {
	return !p.probing && (!p.gone.IsZero() || now.Sub(p.heard) >= quiet && now.Sub(p.probed) >= quiet)
}

// probeFound records that a probe has found the topic of the instance, or that the bus cannot tell whether the topic exists.
func (p *peer) probeFound(sent time.Time) {
	p.probing, p.gone = false, time.Time{}
	if p.unanswered.IsZero() && p.heard.Before(sent) {
		p.unanswered = sent
	}
}

// probeMissed records that a probe has found no topic of the instance.
func (p *peer) probeMissed(sent time.Time) {
	if p.gone.IsZero() {
		p.gone = sent
		p.paused = !p.unanswered.IsZero() && sent.Sub(p.unanswered) > pausedAfter
	}
	p.probing, p.goneUntil = false, sent
}

// lost reports whether the process of the instance has ended: all probes have found no topic for lostAfter, and the process was not
// paused.
func (p *peer) lost() bool {
	return !p.gone.IsZero() && !p.paused && p.goneUntil.Sub(p.gone) >= lostAfter
}

// forgotten reports whether the client no longer needs to remember the instance.
func (p *peer) forgotten(now time.Time) bool { return !p.probing && now.Sub(p.heard) > forgetAfter }

// route is the destination of calls: an interface and a host, or [Any]. Its methods decide when to ping its topic and which calls
// are lost. Client.mu guards it.
type route struct {
	iface  string
	major  int
	host   string
	peers  map[string]*peer // the instances that serve its calls, by id
	recent *peer            // the instance that sent the last message; nil: no instance is known

	used     time.Time // when the last call was sent
	learnt   time.Time // when all servers were last asked for their instances
	pinged   time.Time // when the topic was last pinged
	nameless time.Time // when the last message came that names no instance, such as from a server of an older release
	missing  time.Time // the send time of the first ping in a row that found no topic; zero: the last ping found the topic
	missed   time.Time // the send time of the last ping that found no topic
	served   []served  // the recently answered pings of the topic

	// The fields below describe the pending calls. Client.tick sets them.
	calls     int
	unknown   time.Time // when the first call without a known instance was sent; zero: there is no such call
	lostUntil time.Time // calls without a known instance are lost if they were sent at this time or before; zero: no call is lost
}

// served is an answered ping of a topic. The calls that were sent before the ping no longer wait in the topic.
type served struct{ pinged, answered time.Time }

type routeKey struct{ iface, host string }

// count adds a pending call to r.calls. If the call has no known instance and was sent before
// r.unknown, count sets r.unknown to the time when it was sent.
func (r *route) count(w *waiter) {
	r.calls++
	if w.peer == nil && (r.unknown.IsZero() || w.sent.Before(r.unknown)) {
		r.unknown = w.sent
	}
}

// suspicious reports whether a call has waited for its first heartbeat for suspectAfter.
func (r *route) suspicious(now time.Time) bool {
	return !r.unknown.IsZero() && now.Sub(r.unknown) >= suspectAfter
}

// pingDue reports whether the topic must be pinged now. This is so in two cases: an instance that may have received a pending call
// may have ended; or all known instances are lost, so that calls wait in the topic until the broker removes it.
func (r *route) pingDue(now time.Time) bool {
	quiet := now.Sub(r.pinged)
	if r.unknown.IsZero() || quiet < suspectAfter {
		return false
	}
	left := false
	for _, p := range r.peers {
		if !p.paused && !p.gone.Before(r.unknown) {
			return true
		}
		left = left || !p.lost()
	}
	return !left && r.suspicious(now) && (quiet >= awayEvery || !r.missing.IsZero())
}

// pingFound records that a ping has found the topic, or that the bus cannot tell whether the topic exists.
func (r *route) pingFound() { r.missing = time.Time{} }

// pingMissed records that a ping has found no topic.
func (r *route) pingMissed(sent time.Time) {
	if r.missing.IsZero() {
		r.missing = sent
	}
	r.missed = sent
}

// answered records the answer to a ping of the topic.
func (r *route) answered(s served) {
	recent := r.served[:0]
	for _, o := range r.served {
		if s.answered.Sub(o.answered) <= 2*lostAfter {
			recent = append(recent, o)
		}
	}
	r.served = append(recent, s)
}

// lostBefore returns a time. The calls without a known instance that were sent at this time or before are lost: they do not wait in
// the topic, and the instance that may have received them has ended. This is so in three cases:
//
//   - All known instances are lost.
//   - Another instance still runs. It has answered a ping of the topic that was sent after the calls, and it has sent no heartbeat
//     for them.
//   - The broker has removed the topic, and the calls with it.
//
// If no call is lost, the time is zero. It is also zero while messages come that name no instance, because the loss of their servers
// cannot be detected.
func (r *route) lostBefore(now time.Time) time.Time {
	if !r.nameless.IsZero() && now.Sub(r.nameless) < forgetAfter {
		return time.Time{}
	}
	var gone, emptied time.Time
	left := false
	for _, p := range r.peers {
		if !p.lost() {
			left = true
		} else if p.gone.After(gone) {
			gone = p.gone
		}
	}
	for _, s := range r.served {
		if now.Sub(s.answered) >= servedAfter && s.pinged.After(emptied) {
			emptied = s.pinged
		}
	}
	if !left && !r.missing.IsZero() && r.missed.Sub(r.missing) >= lostAfter && r.missing.After(gone) {
		return r.missing
	}
	if left && emptied.Before(gone) {
		return emptied
	}
	return gone
}

// forget drops lost and silent instances if the route has no pending call. It reports whether the route itself is no longer needed.
func (r *route) forget(now time.Time) bool {
	if r.calls > 0 {
		return false
	}
	for id, p := range r.peers {
		if !p.gone.IsZero() || now.Sub(p.heard) > forgetAfter {
			delete(r.peers, id)
		}
	}
	if r.recent != nil && r.peers[r.recent.id] == nil {
		r.recent = nil
	}
	return len(r.peers) == 0 && now.Sub(r.used) > forgetAfter
}
