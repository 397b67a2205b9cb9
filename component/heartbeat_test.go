package component_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/service"
)

// beater runs a component that sends heartbeats, in the fake time of a bubble. The function f sends a heartbeat. The function wire
// gets the process before the process starts, and the function made by Process.Heartbeat.
func beater(t *testing.T, env []string, f func(context.Context) error, wire func(p *component.Process[component.Options], beat func(context.Context) error)) (log *output, stop func()) {
	t.Helper()
	log = new(output)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- component.Run(ctx, component.Component[component.Options]{Name: "x", Services: []component.Service[component.Options]{{
			Name: "a", Wire: func(_ context.Context, p *component.Process[component.Options]) error {
				wire(p, p.Heartbeat("compute", f))
				return nil
			},
		}}}, []string{"a"}, append(env, "OS_DEFAULT__TRANSPORT_URL=memory://", "OS_DEFAULT__DEBUG=true"), io.Discard, log)
	}()
	return log, func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("exit code %d: %s", code, log)
		}
	}
}

// signals starts the goroutine of package signal outside of all bubbles, because a bubble ends only when its goroutines
// have ended.
var signals = sync.OnceFunc(func() {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, os.Interrupt)
	signal.Stop(ch)
})

// TestHeartbeat: heartbeats that fail are retried with back-off, up to report_interval. The log has a WARN about them at most once a minute, and one INFO
// for the next success.
func TestHeartbeat(t *testing.T) {
	t.Parallel()
	signals()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards at and bad
		begin, bad := time.Now(), true
		var at []time.Duration
		log, stop := beater(t, nil, func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(begin))
			if bad {
				return errors.New("the driver does not answer")
			}
			return nil
		}, func(p *component.Process[component.Options], beat func(context.Context) error) {
			p.Add("first report", service.Funcs{OnStart: beat})
			p.Add("report", service.Loop(time.Second, beat))
		})
		<-time.After(20 * time.Minute)
		synctest.Wait()
		mu.Lock()
		failed := len(at)
		bad = false
		mu.Unlock()
		<-time.After(time.Minute)
		synctest.Wait()
		stop()
		if failed < 110 || failed > 130 || len(at)-failed < 5 || len(at)-failed > 8 {
			t.Errorf("%d attempts failed within 20 min, and %d worked within 1 min: %v", failed, len(at)-failed, at)
		}
		if s := log.String(); strings.Count(s, `level=WARN msg="heartbeat failed"`) < 15 || strings.Count(s, "level=WARN") > 21 || strings.Count(s, `level=INFO msg="heartbeat works again"`) != 1 {
			t.Errorf("the log:\n%s", s)
		}
	})
}

// TestHeartbeatAtStop: a heartbeat that the stop of the process cancels, or that fails because a part of the process has drained, is not a
// failure: the log has no warning.
func TestHeartbeatAtStop(t *testing.T) {
	t.Parallel()
	signals()
	for name, interval := range map[string]string{"drained": "2", "canceled": "3600"} { // a heartbeat may take one interval: with a short one it would end before the stop
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				drained := false
				env := []string{"OS_DEFAULT__REPORT_INTERVAL=" + interval, "OS_DEFAULT__SERVICE_DOWN_TIME=7200"}
				log, stop := beater(t, env, func(ctx context.Context) error {
					if name == "canceled" {
						<-ctx.Done()
						return ctx.Err()
					}
					mu.Lock()
					defer mu.Unlock()
					if drained {
						return errors.New("the conductor is stopped")
					}
					return nil
				}, func(p *component.Process[component.Options], beat func(context.Context) error) {
					p.Add("work", service.Funcs{OnDrain: func(context.Context) error { // running work that takes long
						mu.Lock()
						drained = true
						mu.Unlock()
						<-time.After(20 * time.Second)
						return nil
					}})
					p.Add("report", service.Loop(time.Second, beat))
				})
				<-time.After(time.Minute)
				synctest.Wait()
				stop()
				if s := log.String(); strings.Contains(s, "level=WARN") || !strings.Contains(s, "heartbeat failed while the process stops") {
					t.Errorf("the log:\n%s", s)
				}
			})
		})
	}
}
