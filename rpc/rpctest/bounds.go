package rpctest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
)

// refusalTime is the maximum duration of a refusal that needs no broker.
const refusalTime = 5 * time.Second

// maxMessage returns the limit that the bus declares, in bytes.
func maxMessage(b *bench) int {
	limit := b.client.Capabilities().MaxMessage
	if limit == 0 {
		b.Skip("the bus declares no limit")
	}
	return limit
}

// checkRefusal checks that err matches the error want, contains all texts, and came at most refusalTime
// after the time since.
func checkRefusal(b *bench, what string, err, want error, since time.Time, texts ...string) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Errorf("%s: %.300v (%v), want %v", what, err, fault.CodeOf(err), want)
	}
	for _, text := range texts {
		if !strings.Contains(fmt.Sprint(err), text) {
			b.Errorf("%s: %.300v, want it to say %q", what, err, text)
		}
	}
	if d := time.Since(since); d > refusalTime {
		b.Errorf("%s: the refusal took %v", what, d)
	}
}

func testTooLarge(b *bench) {
	limit := maxMessage(b)
	took := make(chan int, 10)
	srv := startServer(b, b.server, rpc.ServerConfig{Interface: iface, Host: "a"}, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(_ context.Context, n *note) (*note, error) {
			switch {
			case n.N < 0:
				return nil, fmt.Errorf("%w: %s", errNoWay, strings.Repeat("x", -n.N))
			case n.N > 0:
				return &note{Text: strings.Repeat("x", n.N)}, nil
			}
			return &note{N: len(n.Text)}, nil
		})
		rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) {
			if n.N < 0 {
				return nil, fmt.Errorf("%w: %s", errNoWay, strings.Repeat("x", -n.N))
			}
			took <- n.N
			return nil, nil
		})
	})
	c := b.newClient()
	large := &note{Text: strings.Repeat("x", limit)}
	sizes := []string{strconv.Itoa(limit), strconv.Itoa(limit)[:2]}
	since := time.Now()
	_, err := rpc.Call(b.ctx(), c, echo, "a", large)
	checkRefusal(b, "call", err, rpc.ErrTooLarge, since, sizes...)
	if !errors.Is(err, fault.Invalid) || fault.IsRemote(err) {
		b.Errorf("call: %.300v, want the client's own Invalid", err)
	}
	since = time.Now()
	checkRefusal(b, "cast", rpc.Cast(b.ctx(), c, keep, "a", large), rpc.ErrTooLarge, since, sizes...)
	since = time.Now()
	checkRefusal(b, "fanout", rpc.Fanout(b.ctx(), c, keep, large), rpc.ErrTooLarge, since, sizes...)

	since = time.Now()
	_, err = rpc.Call(b.ctx(), c, echo, "a", &note{N: limit})
	checkRefusal(b, "reply", err, rpc.ErrReplyTooLarge, since, sizes...)
	since = time.Now()
	_, err = rpc.Call(b.ctx(), c, echo, "a", &note{N: -(200 << 10)})
	checkRefusal(b, "an error of 200 KiB", err, errNoWay, since)

	fits := &note{Text: strings.Repeat("x", limit-2048)}
	if got, err := rpc.Call(b.ctx(), c, echo, "a", fits); err != nil || got.N != limit-2048 {
		b.Errorf("a call just below the limit: %.300v", err)
	}

	// The dead letter is longer than the message, and may be larger than the broker accepts.
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: -(200 << 10), Text: fits.Text}); err != nil {
		b.Fatal(err)
	}
	waittest.Until(b, "a dead letter", func() bool { return srv.Stats().DeadLettered > 0 })
	letters := 0
	if err := rpc.DeadLetters(b.ctx(), b.client, iface, func(l *rpc.DeadLetter) rpc.Verdict {
		letters++
		if len(l.Reason) > 64<<10 || !strings.Contains(l.Reason, "no way") {
			b.Errorf("a reason of %d bytes: %.100q", len(l.Reason), l.Reason)
		}
		if cut := l.Metadata["truncated"]; len(l.Payload) < len(fits.Text) && cut == "" || len(l.Payload) > len(fits.Text) && cut != "" {
			b.Errorf("a dead letter with %d bytes, truncated %q", len(l.Payload), cut)
		}
		return rpc.Drop
	}); err != nil || letters != 1 {
		b.Errorf("%d dead letters, error %v; want the one whose error is long", letters, err)
	}

	for what, change := range map[string]func(*bus.Message){
		"metadata of 100 KiB":         func(m *bus.Message) { m.Header = map[string]string{"more": strings.Repeat("x", 100<<10)} },
		"a key of 300 bytes":          func(m *bus.Message) { m.Header = map[string]string{strings.Repeat("k", 300): "x"} },
		"a reply topic of 300 bytes":  func(m *bus.Message) { m.ReplyTo = strings.Repeat("r", 300) },
		"a correlation of 300 bytes":  func(m *bus.Message) { m.Correlation = strings.Repeat("c", 300) },
		"metadata in 20,000 keys":     func(m *bus.Message) { m.Header = manyKeys(20_000) },
		"a dead letter's long reason": func(m *bus.Message) { m.Dead = &bus.Dead{Reason: strings.Repeat("x", 100<<10)} },
	} {
		m := rawMessage(b, 1)
		change(m)
		since = time.Now()
		checkRefusal(b, what, b.client.Publish(b.ctx(), "suite.a", m), fault.Invalid, since)
	}
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: 7}); err != nil {
		b.Fatal(err)
	}
	if n := receiveValue(b, took, "a cast after the refusals"); n != 7 {
		b.Errorf("got %d, want 7: a refused message must not arrive", n)
	}
}

func manyKeys(n int) map[string]string {
	md := make(map[string]string, n)
	for i := range n {
		md[fmt.Sprint("key-", i)] = "x"
	}
	return md
}

func testNames(b *bench) {
	b.serve("a", 0, func(s *rpc.Server) { rpc.Handle(s, echo, echoNote) })
	c := b.newClient()
	names := map[string]string{
		"300 bytes":               strings.Repeat("h", 300),
		"249 bytes and a suffix":  strings.Repeat("h", 249),
		"a line break":            "a\nb",
		"a zero byte":             "a\x00",
		"a control above ASCII":   "a\u0085b",
		"invalid UTF-8":           "a\xffb",
		"a space":                 "a b",
		"a wildcard":              "a.*",
		"a wildcard for the rest": "a.>",
		"an empty part":           "a..b",
		"a dot at the end":        "a.",
		"the name of a topic":     "calls",
		"a topic of another host": "a.calls",
		"the dead letters":        "dlq",
	}
	for what, host := range names {
		since := time.Now()
		_, err := rpc.Call(b.ctx(), c, echo, host, &note{})
		checkRefusal(b, "call to a host with "+what, err, fault.Invalid, since)
		since = time.Now()
		checkRefusal(b, "cast to a host with "+what, rpc.Cast(b.ctx(), c, keep, host, &note{}), fault.Invalid, since)
		since = time.Now()
		checkRefusal(b, "a server with "+what, startNamed(b, host), fault.Invalid, since)
		if host == "calls" || host == "dlq" || host == "a.calls" {
			continue // valid as topics
		}
		topic := "suite." + host + ".calls"
		since = time.Now()
		checkRefusal(b, "publish to "+what, b.client.Publish(b.ctx(), topic, rawMessage(b, 1)), fault.Invalid, since)
		for _, mode := range []bus.Mode{bus.Shared, bus.Live, bus.Private} {
			since = time.Now()
			_, err := b.server.Subscribe(b.ctx(), bus.Subscription{Topic: topic, Mode: mode})
			checkRefusal(b, "subscribe to "+what, err, fault.Invalid, since)
		}
		since = time.Now()
		_, err = b.server.Subscribe(b.ctx(), bus.Subscription{Topic: "suite.private", Mode: bus.Private, Fanout: topic})
		checkRefusal(b, "subscribe to fanouts of "+what, err, fault.Invalid, since)
	}
	if _, err := rpc.Call(b.ctx(), c, echo, "a", &note{}); err != nil {
		b.Errorf("a call after the refusals: %v", err)
	}
}

// startNamed starts a server with the host name. It returns the error of Start, or a panic as an error.
func startNamed(b *bench, host string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Invalid, "%v", p)
		}
	}()
	s := rpc.NewServer(b.server, rpc.ServerConfig{Interface: iface, Host: host})
	if err = s.Start(b.ctx()); err == nil {
		b.Cleanup(func() { _ = s.Stop(context.Background()) })
	}
	return err
}
