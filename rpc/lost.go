package rpc

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// The times by which a client detects that the process of a server has ended: see ADR 21.
const (
	// firstBeat is how soon after the start of a call's handler the server sends the first heartbeat, which names its instance. A
	// client that knows no instance yet asks for the first heartbeat after atOnce instead.
	firstBeat = 100 * time.Millisecond
	atOnce    = time.Millisecond
	// watchEvery is how often the pending calls are checked, and how often an instance is probed whose topic no longer exists.
	// Any other instance is probed if the client has not heard from it for probeAfter, or for suspectAfter while a call waits for
	// its first heartbeat.
	watchEvery   = 100 * time.Millisecond
	suspectAfter = 200 * time.Millisecond
	probeAfter   = 400 * time.Millisecond
	// lostAfter is the time during which all probes of an instance must find no topic before the instance counts as lost. A
	// server that only lost its connection restores its topic sooner.
	lostAfter = 1200 * time.Millisecond
	// servedAfter is the time after the answer to a ping at which every call that was sent before the ping has left the topic:
	// its server has sent the first heartbeat, or the bus has sent the call again. A bus delivers a call, or sends it again,
	// within 600 ms.
	servedAfter = 800 * time.Millisecond
	// pausedAfter is how long an instance may leave probes unanswered. If probes were unanswered for longer before the topic
	// disappeared, the process was paused and not killed. Then the heartbeat timeout ends its calls.
	pausedAfter = time.Second
	// awayEvery is how often a topic is pinged while calls wait in it and all known instances are lost.
	awayEvery = time.Second
	// learnEvery is how often all servers of an interface are asked for their instances while calls to Any are sent.
	learnEvery = 30 * time.Second
	// forgetAfter is how long the client remembers an instance that sends nothing.
	forgetAfter = 10 * time.Minute
	// maxProbes is how many instances of one route are probed at once.
	maxProbes = 64
	// minRest: a call is watched only if its deadline is further away than this.
	minRest = time.Second
)

// ping is a request to the servers of a route. The answer shows whether the topic of the route is served, and by which instance.
type ping struct {
	route *route
	sent  time.Time
	topic bool // true: the ping goes through the topic of the calls, behind the calls; false: it goes to all servers
}

// watchCall begins to watch the server of a call, and returns how soon the call wants its first heartbeat. It sends its pings
// and probes before the call is sent. So if they find that an instance has ended, this instance has not received the call.
func (c *Client) watchCall(w *waiter, info Info) (first time.Duration) {
	c.mu.Lock()
	r := c.routeLocked(info)
	w.route, r.used = r, w.sent
	c.startTickingLocked()
	learn := r.host == Any && w.sent.Sub(r.learnt) > learnEvery
	if learn {
		r.learnt = w.sent
	}
	p := r.recent
	probe := p != nil && !p.probing && w.sent.Sub(p.heard) > probeAfter
	if probe {
		p.probing = true
	}
	c.mu.Unlock()
	if learn {
		c.ping(r, false)
	}
	if probe {
		c.probe(p)
	}
	if p == nil {
		return atOnce
	}
	return firstBeat
}

func (c *Client) routeLocked(info Info) *route {
	key := routeKey{info.Interface, info.Host}
	if c.routes[key] == nil {
		c.routes[key] = &route{iface: info.Interface, major: info.Version.Major, host: info.Host, peers: make(map[string]*peer)}
	}
	return c.routes[key]
}

func (c *Client) startTickingLocked() {
	if c.watching == nil {
		c.watching = time.AfterFunc(watchEvery, c.tick)
	} else if !c.ticking {
		c.watching.Reset(watchEvery)
	}
	c.ticking = true
}

// heardLocked records a message from a server of a route. It returns the server's instance, or nil if the message names
// none.
func (c *Client) heardLocked(r *route, m *bus.Message) *peer {
	now := time.Now()
	id := m.Instance
	if id == "" {
		r.nameless = now
		return nil
	}
	if r.recent == nil || r.recent.id != id {
		if c.peers[id] == nil {
			c.peers[id] = &peer{id: id}
		}
		r.recent = c.peers[id]
		r.peers[id] = r.recent
	}
	r.recent.hear(now)
	return r.recent
}

// tick checks the pending calls: it ends the lost calls, probes the instances that may have ended, and pings the topics whose
// calls these instances may have received.
func (c *Client) tick() {
	c.mu.Lock()
	if c.life.Err() != nil {
		c.mu.Unlock()
		return
	}
	now := time.Now()
	c.endLostLocked(now)
	c.countCallsLocked()
	probes, pings := c.dueProbesLocked(now), c.duePingsLocked(now)
	c.forgetLocked(now)
	if c.ticking = len(c.pending) > 0 || len(c.pings) > 0; c.ticking {
		c.watching.Reset(watchEvery)
	}
	c.mu.Unlock()
	for _, p := range probes {
		c.probe(p)
	}
	for _, r := range pings {
		c.ping(r, true)
		if r.host == Any {
			c.ping(r, false)
		}
	}
}

func (c *Client) countCallsLocked() {
	for _, r := range c.routes {
		r.calls, r.unknown = 0, time.Time{}
	}
	for _, w := range c.pending {
		if w.route != nil {
			w.route.count(w)
		}
	}
}

// dueProbesLocked returns the instances to probe now: those that run a pending call, and those that may run one.
func (c *Client) dueProbesLocked(now time.Time) (due []*peer) {
	add := func(p *peer, quiet time.Duration) {
		if p.probeDue(now, quiet) {
			p.probing = true
			due = append(due, p)
		}
	}
	for _, w := range c.pending {
		if w.peer != nil {
			add(w.peer, probeAfter)
		}
	}
	for _, r := range c.routes {
		if !r.suspicious(now) {
			continue
		}
		n := 0
		for _, p := range r.peers {
			if n++; n > maxProbes {
				break
			}
			add(p, suspectAfter)
		}
	}
	return due
}

// duePingsLocked returns the routes whose topics must be pinged now.
func (c *Client) duePingsLocked(now time.Time) (due []*route) {
	for _, r := range c.routes {
		if r.pingDue(now) {
			r.pinged = now
			due = append(due, r)
		}
	}
	return due
}

func (c *Client) forgetLocked(now time.Time) {
	maps.DeleteFunc(c.routes, func(_ routeKey, r *route) bool { return r.forget(now) })
	maps.DeleteFunc(c.peers, func(_ string, p *peer) bool { return p.forgotten(now) })
	maps.DeleteFunc(c.pings, func(_ string, q ping) bool { return now.Sub(q.sent) > 2*probeTimeout })
}

// endLostLocked ends the calls whose servers are lost.
func (c *Client) endLostLocked(now time.Time) {
	for _, r := range c.routes {
		r.lostUntil = r.lostBefore(now)
	}
	for id, w := range c.pending {
		if !w.lost() {
			continue
		}
		delete(c.pending, id)
		atomic.AddUint64(&c.stats.Lost, 1)
		w.ended <- outcome{err: fmt.Errorf("%w: its topic at the broker has been missing for %v; the request may have been executed", ErrServerLost, lostAfter)}
	}
}

// lost reports whether the server of a call is lost.
func (w *waiter) lost() bool {
	if w.peer != nil {
		return w.peer.lost()
	}
	return w.route != nil && !w.sent.After(w.route.lostUntil)
}

// probe asks the bus whether the topic of an instance exists. The caller has set p.probing.
func (c *Client) probe(p *peer) {
	sent := time.Now()
	c.mu.Lock()
	p.probed = sent
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(c.life, probeTimeout)
	m := &bus.Message{ID: newID(), Kind: bus.Probe, ReplyTo: c.topic}
	c.bus.Send(ctx, prefixReply+p.id, m, func(err error) {
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		if bus.OutcomeOf(err) != bus.Unroutable {
			p.probeFound(sent)
			return
		}
		if p.probeMissed(sent); p.lost() {
			c.endLostLocked(time.Now())
		}
	})
}

// ping asks the servers of a route for their instances. If the parameter topic is true, the ping goes through the topic of the
// calls, and one server answers. Otherwise all servers of the interface answer.
func (c *Client) ping(r *route, topic bool) {
	m := Info{Kind: string(bus.Call), Interface: r.iface, Method: methodPing, Version: Version{Major: r.major}}.message(newID())
	if !topic {
		m.Kind = bus.Fanout
	}
	now := time.Now()
	ctx, cancel := context.WithTimeout(c.life, probeTimeout)
	m.ReplyTo, m.Deadline = c.topic, now.Add(probeTimeout)
	c.mu.Lock()
	c.pings[m.ID] = ping{r, now, topic}
	c.mu.Unlock()
	c.bus.Send(ctx, topicOf(m.Kind, r.iface, r.host), m, func(err error) {
		cancel()
		if topic {
			c.mu.Lock()
			if bus.OutcomeOf(err) == bus.Unroutable {
				r.pingMissed(now)
			} else {
				r.pingFound()
			}
			c.mu.Unlock()
		}
		if err != nil && fault.CodeOf(err) != fault.Unavailable {
			c.cfg.Logger.Debug("ping of the servers not sent", "interface", r.iface, "host", r.host, "error", err)
		}
	})
}

// receivePingLocked receives the answer to a ping. It reports whether m is such an answer.
func (c *Client) receivePingLocked(m *bus.Message) bool {
	q, ok := c.pings[m.Correlation]
	if ok && c.heardLocked(q.route, m) != nil && q.topic && m.Header[headerError] == "" {
		q.route.answered(served{q.sent, time.Now()})
	}
	return ok
}
