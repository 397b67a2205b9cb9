package rpc

import (
	"context"
	"fmt"
	"time"

	"github.com/armature-go/armature/rpc/bus"
)

// An instance is one life of a server, from Start to Stop. It has a private topic, on which it answers probes. When the process is
// gone, the broker drops that topic at once: a probe then fails with ErrNoConsumer. If only the connection was lost, the topic comes
// back with the next connection.

// probeTimeout is the timeout of publishing a probe, and of publishing its answer.
const probeTimeout = time.Second

// openInstanceLocked begins a new instance of the server: it opens the instance's topic and answers probes. The function leave ends
// the topic, and waits for the goroutine that answers probes.
func (s *Server) openInstanceLocked(ctx context.Context) (leave func(), err error) {
	s.instance = newID()
	topic := prefixReply + s.instance
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	keep := context.AfterFunc(ctx, cancel) // ctx is for the start only
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
			_ = d.Ack() // the topic has no other subscriber
			s.answerProbe(life, d.Message)
		}
	}()
	return func() { cancel(); <-ended }, nil
}

func (s *Server) answerProbe(ctx context.Context, m *bus.Message) {
	if m.Kind != bus.Probe || m.ReplyTo == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if err := s.bus.Publish(ctx, m.ReplyTo, s.signInstance(newHeartbeat(m.ID))); err != nil {
		s.cfg.Logger.DebugContext(ctx, "probe not answered", "topic", m.ReplyTo, "error", err)
	}
}

// signInstance sets the server's instance in a reply or a heartbeat, and returns the message.
func (s *Server) signInstance(m *bus.Message) *bus.Message {
	m.Instance = s.instance
	return m
}
