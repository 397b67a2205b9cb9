package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/service"
)

// TestReport: heartbeats that fail are retried with back-off, up to report_interval. The log has a line for the first
// failure and a line for the next success.
func TestReport(t *testing.T) { //nolint:paralleltest // the others set the default logger
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		n := &node{options: &options{settings: settings{ReportInterval: 10 * time.Second}}, log: log}
		n.app = service.New(service.Config{Name: "x", NoSignals: true, Logger: log})
		var mu sync.Mutex // of at and bad
		begin, bad := time.Now(), true
		var at []time.Duration
		beat := n.heartbeat("compute", func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(begin))
			if bad {
				return errors.New("the driver does not answer")
			}
			return nil
		})
		n.app.Add("first report", service.Funcs{OnStart: beat})
		n.app.Add("report", service.Loop(time.Second, beat))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.app.Run(ctx) }()
		<-time.After(2 * time.Minute)
		synctest.Wait()
		mu.Lock()
		failed := len(at)
		bad = false
		mu.Unlock()
		<-time.After(time.Minute)
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if failed < 12 || failed > 18 || len(at)-failed < 5 || len(at)-failed > 8 {
			t.Errorf("%d attempts failed within 2 min, and %d worked within 1 min: %v", failed, len(at)-failed, at)
		}
		if s := out.String(); strings.Count(s, "the driver does not answer") != 1 || strings.Count(s, "level=WARN") != 1 || !strings.Contains(s, "heartbeat succeeded after failures") {
			t.Errorf("the log:\n%s", s)
		}
	})
}
