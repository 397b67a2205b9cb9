package rpc

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// An instance is one life of a server, from Start to Stop. It has a private topic of its own, on which
// it answers probes. A broker drops that topic when the process is gone, and knows that at once: a probe
// then fails with ErrNoConsumer. The topic comes back with a connection that was only lost.

// instanceTopic is the private topic of an instance.
func instanceTopic(id string) string { return "reply." + id }

// probeTime bounds the publishing of a probe and of its answer.
const probeTime = time.Second

// attendLocked gives the server an instance, whose topic lasts until leave is called, which waits for its end.
func (s *Server) attendLocked(ctx context.Context) (leave func(), err error) {
	s.instance = newID()
	topic := instanceTopic(s.instance)
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	keep := context.AfterFunc(ctx, cancel) // while it starts
	in, err := s.bus.Subscribe(life, Subscription{Topic: topic, Mode: Private, Slots: replySlots})
	keep()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	ended := make(chan struct{})
	go func() { // ends with life, or with the bus
		defer close(ended)
		for m := range in {
			_ = Settle(m, true) // no other subscriber could take it
			s.answerProbe(life, m)
		}
	}()
	return func() { cancel(); <-ended }, nil
}

func (s *Server) answerProbe(ctx context.Context, m *message.Message) {
	to := m.Metadata[MetaReplyTo]
	if KindOf(m) != KindProbe || to == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if err := s.bus.Publish(to, s.sign(about(ctx, KindBeat, m.UUID))); err != nil {
		s.cfg.Logger.DebugContext(ctx, "a probe could not be answered", "topic", to, "error", err)
	}
}

// sign names the instance in a reply or a heartbeat.
func (s *Server) sign(m *message.Message) *message.Message {
	m.Metadata[MetaInstance] = s.instance
	return m
}
