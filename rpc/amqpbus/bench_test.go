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

// BenchmarkCompare compares the bus with amqp091-go alone, in interleaved rounds
// of one run. It minds no -benchtime: -args -rounds and -slice say how long.
func BenchmarkCompare(b *testing.B) {
	url := envtest.URL(b, testenv.AMQPVar)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "\nwork\tcallers\tby\tper s\tratio\tp50\tratio\t")
	call := []contender{
		{"amqp091-go", rawCall(b, url, false, false), nil},
		{"amqp091-go, mandatory, confirmed", rawCall(b, url, true, false), nil},
		{"amqp091-go, the same, and JSON", rawCall(b, url, true, true), nil},
		{"rpc on amqpbus, bytes as above", ourCall(b, url, bytesEcho, rawPayload()), nil},
		{"rpc on amqpbus, and JSON", ourCall(b, url, echo, payload()), nil},
	}
	stock := []contender{
		{"amqp091-go", call[0].op, nil},
		{"watermill-amqp", watermillCall(b, url, asItComes(url), 1), nil},
		{"watermill-amqp, tuned", watermillCall(b, url, tuned(url, false), tunedLanes), nil},
		{"watermill requestreply", requestReply(b, url), nil},
	}
	for _, callers := range []int{1, 16, 64, 256} {
		compare(w, "call", callers, call...)
		if callers <= 64 { // 256 at once are too many for requestreply
			compare(w, "call", callers, stock...)
		}
	}
	for _, safe := range []bool{true, false} {
		what := map[bool]string{true: "cast, persistent, confirmed", false: "cast, transient"}[safe]
		cast, drain := rawCast(b, url, safe)
		mine, drainMine := ourCast(b, url, safe)
		plain, drainPlain := watermillCast(b, url, asItComes(url), 1)
		fast, drainFast := watermillCast(b, url, tuned(url, safe), tunedLanes)
		compare(w, what, 64, contender{"amqp091-go", cast, drain}, contender{"rpc on amqpbus", mine, drainMine},
			contender{"watermill-amqp, persistent, not confirmed", plain, drainPlain}, contender{"watermill-amqp, tuned", fast, drainFast})
	}
	cast, drain := rawFanout(b, url)
	mine, drainMine := ourFanout(b, url)
	compare(w, "fanout to 10", 16, contender{"amqp091-go", cast, drain}, contender{"rpc on amqpbus", mine, drainMine})
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

	echo  = rpc.Method[blob, blob]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
	lossy = rpc.Method[blob, rpc.None]{Interface: iface, Name: "lossy", Since: rpc.Version{Major: 1}}
	safe  = rpc.Method[blob, rpc.None]{Interface: iface, Name: "safe", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
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

func ourCast(b *testing.B, url string, durable bool) (cast, drain func()) {
	b.Helper()
	exchange := "bench." + strings.ToLower(rand.Text())
	var c counter
	handle := func(context.Context, *blob) (*rpc.None, error) { c.got(); return &rpc.None{}, nil } //nolint:unparam // a handler's form
	benchServer(b, url, exchange, "h", func(s *rpc.Server) {
		rpc.Handle(s, lossy, handle)
		rpc.Handle(s, safe, handle)
	})
	client, req, m := benchClient(b, url, exchange), payload(), lossy
	if durable {
		m = safe
	}
	return func() {
		c.sent(1)
		if err := rpc.Cast(b.Context(), client, m, "h", req); err != nil {
			b.Error(err)
		}
	}, c.drain
}

func ourFanout(b *testing.B, url string) (cast, drain func()) {
	b.Helper()
	exchange := "bench." + strings.ToLower(rand.Text())
	var c counter
	for i := range fanoutServers {
		benchServer(b, url, exchange, fmt.Sprint("h", i), func(s *rpc.Server) {
			rpc.Handle(s, lossy, func(context.Context, *blob) (*rpc.None, error) { c.got(); return nil, nil })
		})
	}
	client, req := benchClient(b, url, exchange), payload()
	return func() {
		c.sent(fanoutServers)
		if err := rpc.Fanout(b.Context(), client, lossy, req); err != nil {
			b.Error(err)
		}
	}, c.drain
}
