package driver_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/compare"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
)

// barePlugin is the driver of echoKind with go-plugin alone.
type barePlugin struct {
	goplugin.NetRPCUnsupportedPlugin
}

var bareHandshake = goplugin.HandshakeConfig{MagicCookieKey: "ARMATURE_DRIVER", MagicCookieValue: "1", ProtocolVersion: 1}

func (barePlugin) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	d, err := openEcho(context.Background(), nil)
	echoKind.Register(s, d)
	return err
}

func (barePlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

func serveBare() {
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: bareHandshake,
		Plugins:         goplugin.PluginSet{"echo": barePlugin{}},
		GRPCServer:      goplugin.DefaultGRPCServer,
		Logger:          hclog.NewNullLogger(),
	})
}

func launchBare(b *testing.B) echoer {
	b.Helper()
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  bareHandshake,
		Plugins:          goplugin.PluginSet{"echo": barePlugin{}},
		Cmd:              exec.Command(installPrograms(b, "bare") + "/armature-echo-bare"), //nolint:noctx // Kill ends it
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         true,
		Logger:           hclog.NewNullLogger(),
	})
	b.Cleanup(client.Kill)
	rpc, err := client.Client()
	if err != nil {
		b.Fatal(err)
	}
	raw, err := rpc.Dispense("echo")
	if err != nil {
		b.Fatal(err)
	}
	return echoKind.Client(raw.(*grpc.ClientConn), 1)
}

// BenchmarkCompare compares a call through a plugin with a call through go-plugin and gRPC
// alone.
func BenchmarkCompare(b *testing.B) {
	bare, ours := launchBare(b), launchPlugin(b, driver.PluginConfig{}).Driver()
	w := compare.New()
	text := strings.Repeat("x", 100)
	call := func(d echoer, ctx context.Context) func() {
		return func() {
			if _, err := d.Echo(ctx, text); err != nil {
				panic(err)
			}
		}
	}
	who := reqctx.With(b.Context(), reqctx.Request{ID: reqctx.NewID(), UserID: "u", ProjectID: "p", Roles: []string{"member"}})
	for _, n := range []int{1, 64} {
		w.Row("call", n,
			compare.Contender{Name: "go-plugin", Op: call(bare, b.Context())},
			compare.Contender{Name: "driver", Op: call(ours, b.Context())},
			compare.Contender{Name: "driver, with a request", Op: call(ours, who)})
	}
}

// BenchmarkCall counts the allocations of a call in the worker.
func BenchmarkCall(b *testing.B) {
	for _, c := range []struct {
		name string
		d    echoer
	}{{"bare", launchBare(b)}, {"driver", launchPlugin(b, driver.PluginConfig{}).Driver()}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.d.Echo(b.Context(), "x"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCrash measures the time from SIGKILL until the running call fails,
// and until the next call succeeds.
func BenchmarkCrash(b *testing.B) {
	dir := b.TempDir()
	p := launchPlugin(b, driver.PluginConfig{Options: options(b, echoOptions{Dir: dir}), MaxCrashes: 1 << 30, CrashWindow: time.Nanosecond, Logger: slog.New(slog.DiscardHandler)})
	var noticed, back []time.Duration
	for b.Loop() {
		failed := make(chan error)
		go func() {
			_, err := p.Driver().Echo(b.Context(), "sleep:1h")
			failed <- err
		}()
		waittest.Until(b, "the call to reach the program", exists(dir, "asleep"))
		if err := os.Remove(filepath.Join(dir, "asleep")); err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if err := syscall.Kill(p.Status().PID, syscall.SIGKILL); err != nil {
			b.Fatal(err)
		}
		if err := <-failed; fault.CodeOf(err) != fault.Unknown {
			b.Fatal(err)
		}
		noticed = append(noticed, time.Since(began))
		for {
			if _, err := p.Driver().Echo(b.Context(), "x"); err == nil {
				break
			}
			time.Sleep(time.Millisecond) //nolint:forbidigo // the longer pauses of waittest would be measured, too
		}
		back = append(back, time.Since(began))
	}
	b.ReportMetric(float64(slices.Max(noticed).Microseconds())/1e3, "ms-noticed-max")
	b.ReportMetric(float64(slices.Max(back).Microseconds())/1e3, "ms-back-max")
	b.ReportMetric(0, "ns/op")
}
