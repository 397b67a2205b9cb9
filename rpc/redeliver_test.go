package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// faulty is a bus that may refuse or lose published messages.
type faulty struct {
	*membus.Bus
	// meet decides about a published message. If meet returns false, the message is lost, and Publish returns the error of meet, which may
	// be nil.
	meet func(topic string, m *rpcbus.Message) (bool, error)
}

func (f *faulty) Publish(ctx context.Context, topic string, m *rpcbus.Message) error {
	if on, err := f.meet(topic, m); !on {
		return err
	}
	return f.Bus.Publish(ctx, topic, m)
}

func (f *faulty) Send(ctx context.Context, topic string, m *rpcbus.Message, done func(error)) {
	done(f.Publish(ctx, topic, m))
}

// logs is a log that the test may read while it is written.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.buf.String(), text)
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// startServer starts a server of the interface with a handler for keep. The server is stopped when the test ends.
func startServer(t *testing.T, bus rpcbus.Bus, cfg rpc.ServerConfig, h func(context.Context, *string) (*rpc.None, error)) *rpc.Server {
	t.Helper()
	cfg.Interface = iface
	srv := rpc.NewServer(bus, cfg)
	rpc.Handle(srv, keep, h)
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return srv
}

// sendKeep casts a message with the given id.
func sendKeep(t *testing.T, bus rpcbus.Bus, id string) {
	t.Helper()
	m := rpctest.Message(id, "cast backup.keep 2.0 at-least-once", `"x"`)
	if err := bus.Publish(t.Context(), "backup", m); err != nil {
		t.Fatal(err)
	}
}

// pass lets the bubble's time pass.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a synctest bubble
	synctest.Wait()
}

// TestHandledOnce: a server handles a message once and drops later copies of it. It remembers the last 10,000 messages, each for
// an hour.
func TestHandledOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		var runs atomic.Int64
		srv := startServer(t, bus, rpc.ServerConfig{}, func(context.Context, *string) (*rpc.None, error) {
			runs.Add(1)
			return &rpc.None{}, nil
		})
		again := func(id string, want int64) {
			t.Helper()
			before := runs.Load()
			sendKeep(t, bus, id)
			pass(time.Second)
			if got := runs.Load() - before; got != want {
				t.Errorf("message %s was handled %d times, want %d", id, got, want)
			}
		}
		again("first", 1)
		again("first", 0)
		for n := range 10_000 {
			sendKeep(t, bus, strconv.Itoa(n))
		}
		pass(time.Second)
		again("first", 1) // first is the oldest of 10,001
		again("5000", 0)
		pass(time.Hour)
		again("5000", 1)
		if st := srv.Stats(); st.Duplicate != 2 {
			t.Errorf("%d duplicates, want 2", st.Duplicate)
		}
	})
}

// TestCopyWhileItRuns: two copies of a message are never handled at the same time. If the first copy succeeds, the second is dropped;
// otherwise the second is handled next.
func TestCopyWhileItRuns(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			bus := rpctest.NewBus(t)
			var now, most, runs, done int
			var mu sync.Mutex
			srv := startServer(t, bus, rpc.ServerConfig{}, func(context.Context, *string) (*rpc.None, error) {
				mu.Lock()
				runs++
				now++
				most = max(most, now)
				first := runs == 1
				mu.Unlock()
				time.Sleep(10 * time.Second) //nolint:forbidigo // in a synctest bubble
				mu.Lock()
				defer mu.Unlock()
				now--
				if first && fails {
					return nil, errors.New("not this time")
				}
				done++
				return &rpc.None{}, nil
			})
			sendKeep(t, bus, "a")
			pass(time.Second)
			sendKeep(t, bus, "a")
			pass(time.Hour)
			mu.Lock()
			defer mu.Unlock()
			if want := map[bool]int{false: 1, true: 2}[fails]; runs != want || done != 1 || most != 1 {
				t.Errorf("first fails %v: %d runs, %d succeeded, %d at once; want %d, 1, 1", fails, runs, done, most, want)
			}
			if st := srv.Stats(); st.Duplicate == 0 || st.InFlight != 0 || st.DeadLettered != 0 {
				t.Errorf("first fails %v: %+v, want the copy counted", fails, st)
			}
		})
	}
}

// TestFailuresTravel: the number of failed attempts includes the attempts on all servers that had the message, even if a server is
// stopped while the message waits for its next attempt.
func TestFailuresTravel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		var runs atomic.Int64
		h := func(context.Context, *string) (*rpc.None, error) {
			runs.Add(1)
			return nil, errors.New("never")
		}
		first := startServer(t, bus, rpc.ServerConfig{MaxDeliveries: 8}, h)
		sendKeep(t, bus, "a")
		pass(2 * time.Second) // attempts at about 0, 0.1, 0.3, 0.7 and 1.5 s; the next one waits
		before := runs.Load()
		if before < 4 || before > 6 {
			t.Fatalf("%d attempts in 2 s", before)
		}
		begin := time.Now()
		if err := first.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d > 0 {
			t.Errorf("Stop took %v while a message waited for its next attempt", d)
		}
		second := startServer(t, bus, rpc.ServerConfig{MaxDeliveries: 8}, h)
		pass(10 * time.Minute)
		// Stop returned the message during the back-off, before the last failure was counted.
		if n := runs.Load(); n != 9 || second.Stats().DeadLettered != 1 {
			t.Errorf("%d attempts on two servers, %d dead letters; want 8 counted ones and the one that Stop interrupted", n, second.Stats().DeadLettered)
		}
		var failures int
		if err := rpc.DeadLetters(t.Context(), bus, iface, func(l *rpc.DeadLetter) rpc.Verdict {
			failures = l.Failures
			return rpc.Drop
		}); err != nil || failures != 8 {
			t.Errorf("dead letter with %d failures, error %v; want 8", failures, err)
		}
	})
}

// TestDeadLetterFails: while dead letters cannot be published, no message that should become one is lost. When dead letters can
// be published again, the message becomes exactly one dead letter.
func TestDeadLetterFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var refused atomic.Int64
		var well atomic.Bool
		bus := &faulty{Bus: rpctest.NewBus(t), meet: func(topic string, _ *rpcbus.Message) (bool, error) {
			if topic == "backup.dlq" && !well.Load() {
				refused.Add(1)
				return false, fault.New(fault.Unavailable, "the disk is full")
			}
			return true, nil
		}}
		var runs atomic.Int64
		srv := startServer(t, bus, rpc.ServerConfig{}, func(context.Context, *string) (*rpc.None, error) {
			runs.Add(1)
			return nil, fault.New(fault.Invalid, "no use")
		})
		sendKeep(t, bus, "a")
		pass(10 * time.Second)
		if st := srv.Stats(); refused.Load() < 2 || st.DeadLettered != 0 {
			t.Errorf("%d attempts, %+v; want more attempts, and none counted", refused.Load(), st)
		}
		well.Store(true)
		pass(10 * time.Second)
		var ids []string
		if err := rpc.DeadLetters(t.Context(), bus, iface, func(l *rpc.DeadLetter) rpc.Verdict {
			ids = append(ids, l.ID)
			return rpc.Drop
		}); err != nil || len(ids) != 1 || ids[0] != "a" {
			t.Errorf("dead letters %q, error %v; want one", ids, err)
		}
		if st := srv.Stats(); st.DeadLettered != 1 {
			t.Errorf("%+v, want one dead letter", st)
		}
	})
}

// TestCountNotPublished: if a message cannot be published for its next attempt, it returns to its topic unchanged.
func TestCountNotPublished(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var refuse atomic.Bool
		bus := &faulty{Bus: rpctest.NewBus(t), meet: func(_ string, m *rpcbus.Message) (bool, error) {
			if refuse.Load() && m.Failures > 0 {
				return false, fault.New(fault.Unavailable, "the broker cannot be reached")
			}
			return true, nil
		}}
		refuse.Store(true)
		var runs atomic.Int64
		startServer(t, bus, rpc.ServerConfig{MaxDeliveries: 3}, func(context.Context, *string) (*rpc.None, error) {
			if runs.Add(1) < 6 {
				return nil, errors.New("not yet")
			}
			return &rpc.None{}, nil
		})
		sendKeep(t, bus, "a")
		pass(time.Minute)
		if n := runs.Load(); n != 6 {
			t.Errorf("%d runs, want 6: a message that could not be published again must be neither dead-lettered nor lost", n)
		}
	})
}

// TestUnavailable: Unavailable says that nothing was done. A cast whose handler fails with Unavailable is delivered again for a time,
// by default an hour, and not for a number of attempts. Other errors count as attempts.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	away := fault.New(fault.Unavailable, "the database cannot be reached")
	for _, tt := range []struct {
		name   string
		limit  time.Duration
		fails  func(since time.Duration, run int) error
		within [2]time.Duration // the expected time of the last run: at least, at most
		dead   uint64
	}{
		{"back after 50 minutes", 0, func(since time.Duration, _ int) error {
			if since < 50*time.Minute {
				return away
			}
			return nil
		}, [2]time.Duration{50 * time.Minute, 51 * time.Minute}, 0},
		{"never back", 0, func(time.Duration, int) error { return away }, [2]time.Duration{time.Hour, 61 * time.Minute}, 1},
		{"never back, a shorter limit", time.Minute, func(time.Duration, int) error { return away }, [2]time.Duration{time.Minute, 2 * time.Minute}, 1},
		{"then another error", 0, func(since time.Duration, _ int) error {
			if since < 10*time.Minute {
				return away
			}
			return errors.New("a bug")
		}, [2]time.Duration{10 * time.Minute, 13 * time.Minute}, 1},
		{"in turns", 0, func(_ time.Duration, run int) error {
			if run%2 == 0 {
				return away
			}
			return errors.New("a bug")
		}, [2]time.Duration{20 * time.Second, 5 * time.Minute}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				bus := rpctest.NewBus(t)
				begin := time.Now()
				var last atomic.Int64
				var runs, mistakes atomic.Int64
				srv := startServer(t, bus, rpc.ServerConfig{MaxUnavailable: tt.limit, Logger: slog.New(slog.DiscardHandler)}, func(context.Context, *string) (*rpc.None, error) {
					now := time.Since(begin)
					if gap := now - time.Duration(last.Swap(int64(now))); gap > 31*time.Second {
						t.Errorf("there was no attempt for %v", gap)
					}
					err := tt.fails(now, int(runs.Add(1)))
					if err != nil && !errors.Is(err, fault.Unavailable) {
						mistakes.Add(1)
					}
					return &rpc.None{}, err
				})
				sendKeep(t, bus, "a")
				pass(3 * time.Hour)
				end := time.Duration(last.Load())
				if st := srv.Stats(); st.DeadLettered != tt.dead || end < tt.within[0] || end > tt.within[1] || mistakes.Load() != 0 && mistakes.Load() != 10 {
					t.Errorf("the last of %d runs, of which %d had another error, was after %v, and %d dead letters; want %v and %d", runs.Load(), mistakes.Load(), end, st.DeadLettered, tt.within, tt.dead)
				}
			})
		})
	}
}

// TestCastOfNewerVersion: a cast that needs a version that the server does not have waits for a server with this version. If no such
// server comes, the cast is dead-lettered after MaxUnavailable.
func TestCastOfNewerVersion(t *testing.T) {
	t.Parallel()
	for _, upgraded := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			bus := rpctest.NewBus(t)
			old := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Logger: slog.New(slog.DiscardHandler)})
			rpc.Handle(old, keep, func(context.Context, *string) (*rpc.None, error) { return &rpc.None{}, nil })
			if err := old.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := bus.Publish(t.Context(), "backup", rpctest.Message("newer", "cast backup.copy 2.9 at-least-once", `"x"`)); err != nil {
				t.Fatal(err)
			}
			letters := func() int {
				t.Helper()
				n := 0
				if err := rpc.DeadLetters(t.Context(), bus, iface, func(*rpc.DeadLetter) rpc.Verdict { n++; return rpc.Keep }); err != nil {
					t.Fatal(err)
				}
				return n
			}
			pass(10 * time.Minute)
			if n := letters(); n > 0 {
				t.Errorf("%d dead letters after 10 minutes", n)
			}
			if !upgraded {
				pass(2 * time.Hour)
				if n := letters(); n != 1 {
					t.Errorf("%d dead letters after 2 hours, want 1", n)
				}
				if err := old.Stop(t.Context()); err != nil {
					t.Error(err)
				}
				return
			}
			if err := old.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			newer := &rpc.Interface{Name: iface.Name, Version: rpc.Version{Major: 2, Minor: 9}}
			var runs atomic.Int64
			next := rpc.NewServer(bus, rpc.ServerConfig{Interface: newer})
			rpc.Handle(next, rpc.Method[string, rpc.None]{Interface: newer, Name: "copy", Since: newer.Version, Delivery: rpc.AtLeastOnce}, func(context.Context, *string) (*rpc.None, error) {
				runs.Add(1)
				return &rpc.None{}, nil
			})
			if err := next.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			pass(time.Minute)
			if runs.Load() != 1 || letters() != 0 {
				t.Errorf("handled %d times, %d dead letters", runs.Load(), letters())
			}
			if err := next.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRequeueEnds: one call of DeadLetters decides once about each dead letter, even if requeued dead letters fail again at once.
// Such a dead letter is kept for the next call.
func TestRequeueEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		var runs atomic.Int64
		startServer(t, bus, rpc.ServerConfig{}, func(context.Context, *string) (*rpc.None, error) {
			runs.Add(1)
			return nil, fault.New(fault.Invalid, "never")
		})
		const letters = 5
		for n := range 3 {
			sendKeep(t, bus, strconv.Itoa(n))
		}
		for _, id := range []string{"unreadable", ""} {
			if err := bus.Publish(t.Context(), "backup", rpctest.Message(id, "nonsense", "?"+id)); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Second)
		for round := int64(1); round <= 2; round++ {
			calls := 0
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := rpc.DeadLetters(ctx, bus, iface, func(*rpc.DeadLetter) rpc.Verdict {
				if calls++; calls > 100*letters {
					cancel()
				}
				return rpc.Requeue
			})
			pass(time.Second)
			if got := runs.Load(); err != nil || calls != letters || got != 3*(round+1) {
				t.Fatalf("round %d: %v, decided %d times, handled %d times, want %d and %d", round, err, calls, got, letters, 3*(round+1))
			}
		}
	})
}
