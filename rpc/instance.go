package rpc

import (
	"context"
	"fmt"
	"time"

	"github.com/armature-go/armature/rpc/bus"
)

// An instance is one life of a server, from Start to Stop. It has a private topic of its own, on which
// it answers probes. A broker drops that topic when the process is gone, and knows that at once: a probe
// then fails with ErrNoConsumer. The topic comes back with a connection that was only lost.

// probeTime bounds the publishing of a probe and of its answer.
const probeTime = time.Second

// openInstanceLocked gives the server an instance, whose topic lasts until leave is called, which waits for its end.
func (s *Server) openInstanceLocked(ctx context.Context) (leave func(), err error) {
	s.instance = newID()
	topic := prefixReply + s.instance
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	keep := context.AfterFunc(ctx, cancel) // while it starts
	in, err := s.bus.Subscribe(life, bus.Subscription{Topic: topic, Mode: bus.Private, Slots: replySlots})
	keep()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	ended := make(chan struct{})
	go func() { // ends with life, or with the bus
		defer close(ended)
		for d := range in {
			_ = d.Ack() // no other subscriber could take it
			s.answerProbe(life, d.Message)
		}
	}()
	return func() { cancel(); <-ended }, nil
}

func (s *Server) answerProbe(ctx context.Context, m *bus.Message) {
	if m.Kind != bus.Probe || m.ReplyTo == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if err := s.bus.Publish(ctx, m.ReplyTo, s.sign(newHeartbeat(m.ID))); err != nil {
		s.cfg.Logger.DebugContext(ctx, "probe not answered", "topic", m.ReplyTo, "error", err)
	}
}

// sign names the instance in a reply or a heartbeat.
func (s *Server) sign(m *bus.Message) *bus.Message {
	m.Instance = s.instance
	return m
}
