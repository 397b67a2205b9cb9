package rpc

import "time"

// peer is an instance of a server, as a client sees it. Its methods are its rules; Client.mu guards it.
type peer struct {
	id    string
	heard time.Time // when the last message from it came

	probed     time.Time // when the last probe was sent
	probing    bool      // it has no outcome yet
	unanswered time.Time // when the first probe was sent that was not answered; zero: none
	gone       time.Time // when the first of the last probes was sent, all of which found no topic; zero: the last one found it
	goneUntil  time.Time // when the last of these was sent
	paused     bool      // probes were unanswered before its topic was gone
}

// hear notes that a message came from the instance.
func (p *peer) hear(now time.Time) {
	p.heard, p.unanswered, p.gone, p.paused = now, time.Time{}, time.Time{}, false
}

// probeDue reports whether the instance is to be probed: its topic is gone, or the client has neither heard from it nor
// probed it for the time quiet.
func (p *peer) probeDue(now time.Time, quiet time.Duration) bool {
	return !p.probing && (!p.gone.IsZero() || now.Sub(p.heard) >= quiet && now.Sub(p.probed) >= quiet)
}

// probeFound notes that a probe has found the topic of the instance, or that the bus cannot tell.
func (p *peer) probeFound(sent time.Time) {
	p.probing, p.gone = false, time.Time{}
	if p.unanswered.IsZero() && p.heard.Before(sent) {
		p.unanswered = sent
	}
}

// probeMissed notes that a probe has found no topic of the instance.
func (p *peer) probeMissed(sent time.Time) {
	if p.gone.IsZero() {
		p.gone = sent
		p.paused = !p.unanswered.IsZero() && sent.Sub(p.unanswered) > pausedAfter
	}
	p.probing, p.goneUntil = false, sent
}

// lost reports whether the process of the instance has ended.
func (p *peer) lost() bool {
	return !p.gone.IsZero() && !p.paused && p.goneUntil.Sub(p.gone) >= lostAfter
}

// forgotten reports whether nothing is left to be known of the instance.
func (p *peer) forgotten(now time.Time) bool { return !p.probing && now.Sub(p.heard) > forgetAfter }

// route is where calls go: an interface and a host, or [Any]. Its methods are its rules; Client.mu guards it.
type route struct {
	iface  string
	major  int
	host   string
	peers  map[string]*peer // the instances that serve its calls, by id
	recent *peer            // the one that was heard last; nil: none is known

	used     time.Time // when the last call was sent
	learnt   time.Time // when all servers were last asked for their instances
	pinged   time.Time // when its topic was last pinged
	nameless time.Time // when a message of a server without an instance came
	missing  time.Time // when the first of the last pings of its topic was sent, all of which found no topic; zero: the last one found it
	missed   time.Time // when the last of these was sent
	served   []served  // the pings of its topic that were answered of late

	// Of the calls that are pending, counted by Client.tick:
	calls     int
	unknown   time.Time // when the first was sent whose instance is not known; zero: none
	lostUntil time.Time // calls that were sent until then, and whose instance is not known, are lost; zero: none
}

// served says that the calls that were sent before a ping of their topic are not waiting there any more.
type served struct{ pinged, answered time.Time }

type routeKey struct{ iface, host string }

// count adds a pending call.
func (r *route) count(w *waiter) {
	r.calls++
	if w.peer == nil && (r.unknown.IsZero() || w.sent.Before(r.unknown)) {
		r.unknown = w.sent
	}
}

// suspicious reports whether a call has no heartbeat although it wants one.
func (r *route) suspicious(now time.Time) bool {
	return !r.unknown.IsZero() && now.Sub(r.unknown) >= suspectAfter
}

// pingDue reports whether the topic is to be pinged: an instance is gone that may have had a call, or no instance is left, so that
// calls wait in the topic until the broker removes it.
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

// pingFound notes that a ping has found the topic, or that the bus cannot tell.
func (r *route) pingFound() { r.missing = time.Time{} }

// pingMissed notes that a ping has found no topic.
func (r *route) pingMissed(sent time.Time) {
	if r.missing.IsZero() {
		r.missing = sent
	}
	r.missed = sent
}

// answered notes the answer to a ping of the topic.
func (r *route) answered(s served) {
	recent := r.served[:0]
	for _, o := range r.served {
		if s.answered.Sub(o.answered) <= 2*lostAfter {
			recent = append(recent, o)
		}
	}
	r.served = append(recent, s)
}

// lostBefore returns the time until which calls were sent that are lost, if their instance is not known: an instance that
// lived then is gone, and they do not wait in the topic. Either no instance is left, or one has answered a ping of the topic
// that was sent later, and has not sent a heartbeat for the call; or the broker has removed the topic with the calls in it. Servers that
// name no instance send none, so where such ones are the result is zero: none is lost.
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

// forget drops what is not needed by a pending call, and reports whether nothing is left.
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
