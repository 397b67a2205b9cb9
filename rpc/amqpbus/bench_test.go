package amqpbus_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
)

var (
	rounds = flag.Int("rounds", 5, "rounds of the comparison")
	slice  = flag.Duration("slice", time.Second, "how long each contender runs in a round")
)

// contender is one way to do a piece of work.
type contender struct {
	name  string
	op    func()
	drain func() // waits until what op started has ended; may be nil
}

// result is what one contender did in one round.
type result struct {
	rate float64 // operations a second
	p50  time.Duration
}

// measure runs op in as many goroutines as there are callers.
func measure(c contender, callers int, d time.Duration) result {
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	start := time.Now()
	for range callers {
		wg.Go(func() {
			mine := make([]time.Duration, 0, 1<<14)
			for time.Since(start) < d {
				t := time.Now()
				c.op()
				mine = append(mine, time.Since(t))
			}
			mu.Lock()
			all = append(all, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if c.drain != nil {
		c.drain()
	}
	spent := time.Since(start)
	slices.Sort(all)
	return result{float64(len(all)) / spent.Seconds(), all[len(all)/2]}
}

// compare runs the contenders one after another, again and again, and prints
// their medians; the ratios are medians of those in one round to the first.
func compare(w *tabwriter.Writer, what string, callers int, list ...contender) {
	for _, c := range list { // warm
		measure(c, callers, *slice/5)
	}
	got := make([][]result, len(list))
	for range *rounds {
		for i, c := range list {
			got[i] = append(got[i], measure(c, callers, *slice))
		}
	}
	for i, c := range list {
		rates, ratios, p50s, slower := make([]float64, 0), make([]float64, 0), make([]time.Duration, 0), make([]float64, 0)
		for r, x := range got[i] {
			rates, p50s = append(rates, x.rate), append(p50s, x.p50)
			ratios = append(ratios, x.rate/got[0][r].rate)
			slower = append(slower, float64(x.p50)/float64(got[0][r].p50))
		}
		_, _ = fmt.Fprintf(w, "%s\t%d\t%s\t%.0f\t%.2f\t%v\t%.2f\t\n", what, callers, c.name,
			median(rates), median(ratios), median(p50s).Round(time.Microsecond), median(slower))
	}
	_ = w.Flush() // to standard output
}

func median[T float64 | time.Duration](list []T) T {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// BenchmarkCompare compares the bus with amqp091-go alone and with watermill-amqp,
// in interleaved rounds of one run. Those that are compared are open at the same
// time, and no others. It minds no -benchtime: -args -rounds and -slice say how
// long.
func BenchmarkCompare(b *testing.B) {
	url := envtest.URL(b, testenv.AMQPVar)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "\nwork\tcallers\tby\tper s\tratio\tp50\tratio\t")
	b.Run("call", func(b *testing.B) {
		list := []contender{
			{"amqp091-go", rawCall(b, url, false, false), nil},
			{"amqp091-go, mandatory, confirmed", rawCall(b, url, true, false), nil},
			{"rpc on amqpbus, bytes as above", ourCall(b, url, bytesEcho, rawPayload()), nil},
		}
		for _, callers := range []int{1, 16, 64, 256} {
			compare(w, "call", callers, list...)
		}
	})
	b.Run("json", func(b *testing.B) {
		list := []contender{
			{"amqp091-go, mandatory, confirmed", rawCall(b, url, true, true), nil},
			{"rpc on amqpbus", ourCall(b, url, echo, payload()), nil},
		}
		for _, callers := range []int{1, 16, 64, 256} {
			compare(w, "call with JSON", callers, list...)
		}
	})
	b.Run("stock", func(b *testing.B) {
		list := []contender{
			{"amqp091-go", rawCall(b, url, false, false), nil},
			{"watermill-amqp", watermillCall(b, url, asItComes(url), 1), nil},
			{"watermill-amqp, tuned", watermillCall(b, url, tuned(url, false), tunedLanes), nil},
			{"watermill requestreply, and JSON", requestReply(b, url), nil},
		}
		for _, callers := range []int{1, 16, 64} { // 256 at once are too many for requestreply
			compare(w, "call", callers, list...)
		}
	})
	for _, d := range []rpc.Delivery{rpc.AtLeastOnce, rpc.AtMostOnce} {
		b.Run(d.String(), func(b *testing.B) { compareCasts(b, w, url, d) })
	}
	b.Run("fanout", func(b *testing.B) {
		cast, drain := rawFanout(b, url)
		bare, drainBare := ourFanout(b, url, rawPayload())
		coded, drainCoded := ourFanout(b, url, payload())
		compare(w, "fanout to 10", 16, contender{"amqp091-go", cast, drain},
			contender{"rpc on amqpbus, bytes as above", bare, drainBare}, contender{"rpc on amqpbus, and JSON", coded, drainCoded})
	})
}

func compareCasts(b *testing.B, w *tabwriter.Writer, url string, d rpc.Delivery) {
	b.Helper()
	var list []contender
	add := func(name string, op, drain func()) { list = append(list, contender{name, op, drain}) }
	safe, what := d == rpc.AtLeastOnce, "cast, transient"
	if safe {
		what = "cast, persistent, confirmed"
	}
	op, drain := rawCast(b, url, safe)
	add("amqp091-go", op, drain)
	op, drain = ourCast(b, url, d, rawPayload())
	add("rpc on amqpbus, bytes as above", op, drain)
	op, drain = ourCast(b, url, d, payload())
	add("rpc on amqpbus, and JSON", op, drain)
	op, drain = watermillCast(b, url, asItComes(url), 1)
	add("watermill-amqp, persistent, not confirmed", op, drain)
	op, drain = watermillCast(b, url, tuned(url, safe), tunedLanes)
	add("watermill-amqp, tuned", op, drain)
	compare(w, what, 64, list...)
}

type blob struct{ Data []byte }

// payload is 1 KiB as base64 in JSON.
func payload() *blob { return &blob{make([]byte, 768)} }

// rawPayload is 1 KiB that nobody looks at.
func rawPayload() *json.RawMessage {
	raw := json.RawMessage(bytes.Repeat([]byte(" "), 1024))
	return &raw
}

var (
	bytesEcho = rpc.Method[json.RawMessage, json.RawMessage]{Interface: iface, Name: "bytes", Since: rpc.Version{Major: 1}}

	echo = rpc.Method[blob, blob]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
)

func benchServer(b *testing.B, url, exchange, host string, register func(*rpc.Server)) {
	b.Helper()
	srv := rpc.NewServer(open(b, url, exchange), rpc.ServerConfig{Interface: iface, Host: host, MaxInFlight: 100})
	register(srv)
	if err := srv.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = srv.Stop(context.Background()) }) // nothing runs any more
}

func benchClient(b *testing.B, url, exchange string) *rpc.Client {
	b.Helper()
	c := rpc.NewClient(open(b, url, exchange), rpc.ClientConfig{})
	b.Cleanup(func() { _ = c.Close() }) // never fails
	return c
}

func ourCall[T any](b *testing.B, url string, m rpc.Method[T, T], req *T) func() {
	b.Helper()
	exchange := "bench." + strings.ToLower(rand.Text())
	benchServer(b, url, exchange, "h", func(s *rpc.Server) {
		rpc.Handle(s, m, func(_ context.Context, r *T) (*T, error) { return r, nil })
	})
	client := benchClient(b, url, exchange)
	return func() {
		if _, err := rpc.Call(b.Context(), client, m, rpc.Any, req); err != nil {
			b.Error(err)
		}
	}
}

// note is a method without a result.
func note[T any](d rpc.Delivery) rpc.Method[T, rpc.None] {
	return rpc.Method[T, rpc.None]{Interface: iface, Name: "note", Since: rpc.Version{Major: 1}, Delivery: d}
}

func ourCast[T any](b *testing.B, url string, d rpc.Delivery, req *T) (cast, drain func()) {
	b.Helper()
	exchange := "bench." + strings.ToLower(rand.Text())
	var c counter
	m := note[T](d)
	benchServer(b, url, exchange, "h", func(s *rpc.Server) {
		rpc.Handle(s, m, func(context.Context, *T) (*rpc.None, error) { c.got(); return &rpc.None{}, nil })
	})
	client := benchClient(b, url, exchange)
	return func() {
		c.sent(1)
		if err := rpc.Cast(b.Context(), client, m, "h", req); err != nil {
			b.Error(err)
		}
	}, c.drain
}

func ourFanout[T any](b *testing.B, url string, req *T) (cast, drain func()) {
	b.Helper()
	exchange := "bench." + strings.ToLower(rand.Text())
	var c counter
	m := note[T](rpc.AtMostOnce)
	for i := range fanoutServers {
		benchServer(b, url, exchange, fmt.Sprint("h", i), func(s *rpc.Server) {
			rpc.Handle(s, m, func(context.Context, *T) (*rpc.None, error) { c.got(); return &rpc.None{}, nil })
		})
	}
	client := benchClient(b, url, exchange)
	return func() {
		c.sent(fanoutServers)
		if err := rpc.Fanout(b.Context(), client, m, req); err != nil {
			b.Error(err)
		}
	}, c.drain
}
