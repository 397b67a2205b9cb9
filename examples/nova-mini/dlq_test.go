package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/rpc/watermillbus/amqp"
)

// TestDeadLetters: the commands list, show, requeue and drop dead letters of a real broker.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.AMQPVar)
	exchange := "dlq." + strings.ToLower(rand.Text())
	conf := filepath.Join(t.TempDir(), "nova.conf")
	text := fmt.Sprintf("[DEFAULT]\ntransport_url = %s\ncontrol_exchange = %s\n", strings.Replace(url, "amqp://", "rabbit://", 1), exchange)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), &out, append([]string{"dlq", "--config-file", conf}, args...)...)
		return out.String(), err
	}
	if out, err := run("list"); err != nil || out != "no dead letters\n" {
		t.Errorf("list without dead letters: %q, %v", out, err)
	}

	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{url}, Exchange: exchange})
	if err == nil {
		err = bus.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	serve := func(handle func(*compute.DestroyRequest) error) *rpc.Server {
		srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: compute.Worker, Host: "h", MaxDeliveries: 1})
		rpc.Handle(srv, compute.Destroy, func(_ context.Context, r *compute.DestroyRequest) (*rpc.None, error) {
			return &rpc.None{}, handle(r)
		})
		if err := srv.Start(rpctest.Partial(t.Context())); err != nil {
			t.Fatal(err)
		}
		return srv
	}
	srv := serve(func(r *compute.DestroyRequest) error {
		return fault.New(fault.Exhausted, "no driver for %s", r.ServerID)
	})
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	for i := range 3 {
		if err := rpc.Cast(t.Context(), client, compute.Destroy, "h", &compute.DestroyRequest{ServerID: fmt.Sprint("server-", i)}); err != nil {
			t.Fatal(err)
		}
	}
	waittest.Until(t, "three dead letters", func() bool { return srv.Stats().DeadLettered == 3 })
	if err := srv.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	list, err := run("list")
	lines := strings.Split(strings.TrimSpace(list), "\n")
	if err != nil || len(lines) != 4 || !strings.HasPrefix(lines[0], "ID ") {
		t.Fatalf("list: %v\n%s", err, list)
	}
	ids := map[string]string{} // the ids of the dead letters, by the id of the server in the message
	for _, line := range lines[1:] {
		id, rest, _ := strings.Cut(line, " ")
		for _, want := range []string{"compute", "destroy", " 1 ", " h ", "Exhausted: no driver for server-"} {
			if !strings.Contains(rest, want) {
				t.Errorf("the line %q lacks %q", line, want)
			}
		}
		ids[rest[strings.LastIndex(rest, " ")+1:]] = id
	}
	shown, err := run("show", ids["server-1"])
	for _, want := range []string{"id                " + ids["server-1"], "topic             compute.h", "rpc: cast compute.destroy 1.0 at-least-once", `payload           {"server_id":"server-1"}`} {
		if err != nil || !strings.Contains(shown, want) {
			t.Errorf("show: %v, the output lacks %q:\n%s", err, want, shown)
		}
	}
	if _, err := run("show", "none"); exitCode(err) != 1 || !strings.Contains(fmt.Sprint(err), "none") {
		t.Errorf("show of a dead letter that does not exist: %v", err)
	}
	if _, err := run("drop"); exitCode(err) != 2 {
		t.Errorf("drop without ids: %v", err)
	}
	if out, err := run("drop", ids["server-0"]); err != nil || out != "1 dead letters dropped\n" {
		t.Errorf("drop: %q, %v", out, err)
	}
	if out, err := run("requeue", "--all"); err != nil || out != "2 dead letters requeued\n" {
		t.Errorf("requeue: %q, %v", out, err)
	}
	got := make(chan string, 3)
	srv = serve(func(r *compute.DestroyRequest) error { got <- r.ServerID; return nil })
	if a, b := <-got, <-got; a+b != "server-1server-2" && a+b != "server-2server-1" {
		t.Errorf("requeued: %s and %s, want server-1 and server-2", a, b)
	}
	if err := srv.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if out, err := run("list"); err != nil || out != "no dead letters\n" {
		t.Errorf("list at the end: %q, %v", out, err)
	}
}

// TestDLQUsage: a command line is an error if it has no id, an empty id (such as the value of an unset shell variable), or both ids
// and --all.
func TestDLQUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"drop", ""}, {"requeue", "a", ""}, {"show", ""}, {"drop"}, {"requeue"}, {"requeue", "--all", "a"}} {
		if err := run(t.Context(), new(bytes.Buffer), append([]string{"dlq"}, args...)...); exitCode(err) != 2 {
			t.Errorf("dlq %q: %v, want exit code 2", args, err)
		}
	}
}

// TestDeadLettersOfWatermill: the commands find every dead letter of a component that uses watermill-amqp, which delivers
// only 16 messages at once.
func TestDeadLettersOfWatermill(t *testing.T) {
	t.Parallel()
	broker := envtest.URL(t, testenv.AMQPVar)
	url := "watermill-" + broker
	exchange := "dlq." + strings.ToLower(rand.Text())
	bus, err := amqp.New(amqp.Config{URLs: []string{broker}, Exchange: exchange, Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = bus.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Stop(context.Background())
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: compute.Worker, Host: "h", MaxDeliveries: 1, Logger: slog.New(slog.DiscardHandler)})
	rpc.Handle(srv, compute.Destroy, func(context.Context, *compute.DestroyRequest) (*rpc.None, error) {
		return nil, fault.New(fault.Exhausted, "no driver")
	})
	if err := srv.Start(rpctest.Partial(t.Context())); err != nil {
		t.Fatal(err)
	}
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	const letters = 20
	for i := range letters {
		if err := rpc.Cast(t.Context(), client, compute.Destroy, "h", &compute.DestroyRequest{ServerID: fmt.Sprint("server-", i)}); err != nil {
			t.Fatal(err)
		}
	}
	waittest.Until(t, "dead letters", func() bool { return srv.Stats().DeadLettered == letters })
	if err := srv.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "nova.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "[DEFAULT]\ntransport_url = %s\ncontrol_exchange = %s\n", url, exchange), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), &out, "dlq", "--config-file", conf, "list"); err != nil || strings.Count(out.String(), "Exhausted: no driver") != letters {
		t.Errorf("%d of %d dead letters, %v:\n%s", strings.Count(out.String(), "Exhausted: no driver"), letters, err, &out)
	}
}
