package rpc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// How a client learns that the process of a server is gone: see ADR 21.
const (
	// firstHeartbeatDelay is the time after which a server sends its first heartbeat, with its name, to the caller of a call that
	// runs. minHeartbeatDelay is used instead while the client knows no server.
	firstHeartbeatDelay = 100 * time.Millisecond
	minHeartbeatDelay   = time.Millisecond
	// watchInterval is the time between two checks of the waiting calls. A check probes their servers that seem to be
	// gone. A server that seems well is probed if the client has received nothing from it for probeAfter, or for
	// suspectAfter if one of its calls expects a heartbeat and has none.
	watchInterval = 100 * time.Millisecond
	suspectAfter  = 200 * time.Millisecond
	probeAfter    = 400 * time.Millisecond
	// lostAfter is the time for which all probes of an instance must fail before it counts as lost. A server that only
	// lost its connection restores its topic sooner.
	lostAfter = 1200 * time.Millisecond
	// passedAfter is a time after the answer to a question. By then the calls that were sent before the question do not
	// wait in the topic any more, and their servers have sent their first heartbeat if they run.
	passedAfter = 300 * time.Millisecond
	// muteAfter is the time for which an instance may leave probes unanswered before it counts as mute. An instance that
	// was mute before its topic ended was paused, not killed: then the heartbeat timeout applies.
	muteAfter = time.Second
	// learnInterval is the time between two questions to all servers of an interface for their instances, while Any is
	// called.
	learnInterval = 30 * time.Second
	// forgetAfter is the time after which an instance is forgotten if the client has received nothing from it.
	forgetAfter = 10 * time.Minute
	// maxProbes is the number of instances that may have one call and are probed at once.
	maxProbes = 64
	// minRest is the time before its deadline that a call must have, so that it is watched.
	minRest = time.Second
)

// peer is an instance of a server, as a client sees it. Client.mu guards it.
type peer struct {
	id      string
	heard   time.Time // of any message from it
	asked   time.Time // of the first probe since that reached its topic or had no answer; zero: none
	gone    time.Time // of the first of the latest probes in a row that found no topic; zero if the last probe found it
	still   time.Time // of the last of these probes
	mute    bool      // it was mute when its topic ended
	probing bool
	probed  time.Time // when the last probe was sent
}

// due reports whether the instance is to be probed now: it seems to be gone, or the client has received nothing from it for
// the time after.
func (p *peer) due(now time.Time, after time.Duration) bool {
	return !p.probing && (!p.gone.IsZero() || now.Sub(p.heard) >= after && now.Sub(p.probed) >= after)
}

// lost reports whether the process is gone.
func (p *peer) lost() bool {
	return !p.gone.IsZero() && !p.mute && p.still.Sub(p.gone) >= lostAfter
}

// route is where calls go. Client.mu guards it.
type route struct {
	iface  string
	major  int
	host   string
	peers  map[string]*peer // that handle its calls
	recent *peer            // from which the client has received a message last
	learnt time.Time        // when all servers were asked for their instances
	legacy time.Time        // when a server without an instance was heard of
	asking time.Time        // when the last question was sent
	passed []answer         // to questions
	calls  int              // that wait, in the round of tick that counts them
	oldest time.Time        // when the first of them was sent whose server is not known; zero: each is known
}

type routeKey struct{ iface, host string }

// question is a ping through the topic of a route, to see whether it is served, and by which instances.
type question struct {
	route  *route
	sent   time.Time
	inLine bool // it waits in the topic behind the calls
}

// answer says that the topic was served behind the calls that were sent before the question.
type answer struct{ sent, came time.Time }

// joinLocked notes where a call goes, and returns how soon it wants to know its server, and what is to be sent
// before it so that the client knows which servers lived then.
func (c *Client) joinLocked(w *waiter, info Info) (first time.Duration, learn *route, probe *peer) {
	key := routeKey{info.Interface, info.Host}
	r := c.routes[key]
	if r == nil {
		r = &route{iface: info.Interface, major: info.Version.Major, host: info.Host, peers: make(map[string]*peer)}
		c.routes[key] = r
	}
	w.route = r
	if c.watching == nil {
		c.watching = time.AfterFunc(watchInterval, c.tick)
	} else if !c.ticking {
		c.watching.Reset(watchInterval)
	}
	c.ticking = true
	if r.host == Any && w.sent.Sub(r.learnt) > learnInterval {
		r.learnt = w.sent
		learn = r
	}
	switch {
	case r.recent == nil:
		return minHeartbeatDelay, learn, nil
	case w.sent.Sub(r.recent.heard) > probeAfter && !r.recent.probing:
		r.recent.probing = true
		probe = r.recent
	}
	return firstHeartbeatDelay, learn, probe
}

// heardLocked notes a message from a server about what was sent on a route.
func (c *Client) heardLocked(r *route, m *bus.Message) *peer {
	now := time.Now()
	id := m.Instance
	if id == "" {
		r.legacy = now
		return nil
	}
	p := r.recent
	if p == nil || p.id != id {
		if p = c.peers[id]; p == nil {
			p = &peer{id: id}
			c.peers[id] = p
		}
		r.peers[id] = p
		r.recent = p
	}
	p.hear(now)
	return p
}

func (p *peer) hear(now time.Time) {
	p.heard, p.asked, p.gone, p.mute = now, time.Time{}, time.Time{}, false
}

// tick looks after the calls that wait: it ends those that are lost, probes the servers that seem to be gone, and asks
// through the topics whose calls may have been lost with them.
func (c *Client) tick() {
	c.mu.Lock()
	if c.life.Err() != nil {
		c.mu.Unlock()
		return
	}
	now := time.Now()
	c.loseLocked(now)
	probes := c.duePeersLocked(now)
	ask := c.dueQuestionsLocked(now)
	c.forgetLocked(now)
	if c.ticking = len(c.pending) > 0 || len(c.questions) > 0; c.ticking {
		c.watching.Reset(watchInterval)
	}
	c.mu.Unlock()
	for p := range probes {
		c.probe(p)
	}
	for _, r := range ask {
		c.ask(r, true)
		if r.host == Any {
			c.ask(r, false)
		}
	}
}

// duePeersLocked returns the instances to be probed: those that have a call, and those that may have one whose server is
// not known. It counts the calls of each route.
func (c *Client) duePeersLocked(now time.Time) map[*peer]bool {
	due := make(map[*peer]bool)
	for _, r := range c.routes {
		r.calls, r.oldest = 0, time.Time{}
	}
	for _, w := range c.pending {
		r := w.route
		if r == nil {
			continue
		}
		r.calls++
		switch {
		case w.peer != nil:
			if w.peer.due(now, probeAfter) {
				due[w.peer] = true
			}
		case r.oldest.IsZero() || w.sent.Before(r.oldest):
			r.oldest = w.sent
		}
	}
	for _, r := range c.routes {
		if r.oldest.IsZero() || now.Sub(r.oldest) < suspectAfter {
			continue
		}
		n := 0
		for _, p := range r.peers {
			if n++; n <= maxProbes && p.due(now, suspectAfter) {
				due[p] = true
			}
		}
	}
	for p := range due {
		p.probing = true
	}
	return due
}

// dueQuestionsLocked returns the routes through which a question is to be sent.
func (c *Client) dueQuestionsLocked(now time.Time) (due []*route) {
	for _, r := range c.routes {
		if r.suspectLocked() && now.Sub(r.asking) >= suspectAfter {
			r.asking = now
			due = append(due, r)
		}
	}
	return due
}

// forgetLocked drops what was not heard of for long, and is not needed by a call that waits.
func (c *Client) forgetLocked(now time.Time) {
	for key, r := range c.routes {
		maps.DeleteFunc(r.peers, func(_ string, p *peer) bool {
			return r.calls == 0 && (!p.gone.IsZero() || now.Sub(p.heard) > forgetAfter)
		})
		if r.recent != nil && r.peers[r.recent.id] == nil {
			r.recent = nil
		}
		if r.calls == 0 && len(r.peers) == 0 && now.Sub(r.legacy) > forgetAfter && now.Sub(r.learnt) > learnInterval {
			delete(c.routes, key)
		}
	}
	maps.DeleteFunc(c.peers, func(_ string, p *peer) bool { return !p.probing && now.Sub(p.heard) > forgetAfter })
	maps.DeleteFunc(c.questions, func(_ string, q question) bool { return now.Sub(q.sent) > 2*probeTime })
}

// loseLocked ends the calls whose servers are gone.
func (c *Client) loseLocked(now time.Time) {
	cut := make(map[*route]time.Time)
	for id, w := range c.pending {
		r := w.route
		if r == nil {
			continue
		}
		if w.peer == nil {
			end, known := cut[r]
			if !known {
				end = r.lostBeforeLocked(now)
				cut[r] = end
			}
			if w.sent.After(end) {
				continue
			}
		} else if !w.peer.lost() {
			continue
		}
		delete(c.pending, id)
		atomic.AddUint64(&c.stats.Lost, 1)
		w.ended <- outcome{err: fmt.Errorf("the broker has not known the server for %v, and the request may have been executed: %w", lostAfter, ErrServerLost)}
	}
}

// suspectLocked reports whether an instance seems to be gone that may have had a call.
func (r *route) suspectLocked() bool {
	for _, p := range r.peers {
		if !p.mute && !r.oldest.IsZero() && !p.gone.Before(r.oldest) {
			return true
		}
	}
	return false
}

// lostBeforeLocked returns the time up to which calls without a known server were sent that are lost: an
// instance that lived then is gone, and they do not wait in the topic. Either no instance is left, or one
// has taken a question that was sent later, and has not sent a heartbeat for the call. Servers that name no instance
// send none, so where such ones are nothing is said.
func (r *route) lostBeforeLocked(now time.Time) (end time.Time) {
	if !r.legacy.IsZero() && now.Sub(r.legacy) < forgetAfter {
		return end
	}
	left := false
	for _, p := range r.peers {
		if !p.lost() {
			left = true
		} else if p.gone.After(end) {
			end = p.gone
		}
	}
	if !left || end.IsZero() {
		return end
	}
	var passed time.Time
	for _, a := range r.passed {
		if now.Sub(a.came) >= passedAfter && a.sent.After(passed) {
			passed = a.sent
		}
	}
	if passed.Before(end) {
		return passed
	}
	return end
}

// probe asks whether the topic of an instance is there. p.probing is set before.
func (c *Client) probe(p *peer) {
	began := time.Now()
	c.mu.Lock()
	p.probed = began
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(c.life, probeTime)
	m := &bus.Message{ID: newID(), Kind: bus.Probe, ReplyTo: c.topic}
	c.bus.Send(ctx, prefixReply+p.id, m, func(err error) {
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		p.probing = false
		if bus.OutcomeOf(err) == bus.Unroutable {
			if p.gone.IsZero() {
				p.gone = began
				p.mute = !p.asked.IsZero() && began.Sub(p.asked) > muteAfter
			}
			p.still = began
			if p.lost() {
				c.loseLocked(time.Now())
			}
			return
		}
		// It has its topic, or the bus cannot tell.
		p.gone = time.Time{}
		if p.asked.IsZero() && p.heard.Before(began) {
			p.asked = began
		}
	})
}

// ask sends a question: through the topic of the calls, or to all servers of the interface.
func (c *Client) ask(r *route, inLine bool) {
	m := Info{Kind: string(bus.Call), Interface: r.iface, Method: methodPing, Version: Version{Major: r.major}}.message(newID())
	if !inLine {
		m.Kind = bus.Fanout
	}
	now := time.Now()
	ctx, cancel := context.WithTimeout(c.life, probeTime)
	m.ReplyTo, m.Deadline = c.topic, now.Add(probeTime)
	c.mu.Lock()
	c.questions[m.ID] = question{r, now, inLine}
	c.mu.Unlock()
	c.bus.Send(ctx, topicOf(m.Kind, r.iface, r.host), m, func(err error) {
		cancel()
		if err != nil && fault.CodeOf(err) != fault.Unavailable {
			c.cfg.Logger.Debug("ping of the servers not sent", "interface", r.iface, "host", r.host, "error", err)
		}
	})
}

// answeredLocked takes the answer to a question, and reports whether m is one.
func (c *Client) answeredLocked(m *bus.Message) bool {
	q, ok := c.questions[m.Correlation]
	if !ok {
		return false
	}
	now := time.Now()
	if c.heardLocked(q.route, m) != nil && q.inLine && m.Header[headerError] == "" {
		q.route.passed = append(slices.DeleteFunc(q.route.passed, func(a answer) bool { return now.Sub(a.came) > 2*lostAfter }), answer{q.sent, now})
	}
	return true
}
