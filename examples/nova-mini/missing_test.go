package main

import (
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/service/membership"
)

// TestMissingServices: while a server waits for a kind of service of which none is up, the log has one WARN for the kind, and one INFO when such
// a service is up. Without a waiting server, or if the service comes back before the second check, the log has no line.
func TestMissingServices(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		s := store.New(d)
		members := membership.New(membership.Config{DB: d, DownAfter: time.Hour})
		logger, log := logtest.New()
		m := newMissingServices(members, s.Operations(), logger)
		check := func(times, warnings, ends int) {
			t.Helper()
			for range times {
				if err := m.check(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if w, i := log.Count(slog.LevelWarn, "search for a running service failed"), log.Count(slog.LevelInfo, "search for a running service works again"); w != warnings || i != ends {
				t.Errorf("%d WARN and %d INFO, want %d and %d", w, i, warnings, ends)
			}
		}
		join := func(kind string) {
			t.Helper()
			if err := members.Join(t.Context(), membership.Self{Kind: kind, Host: "h1", Version: 1}); err != nil {
				t.Fatal(err)
			}
		}
		leave := func(kind string) {
			t.Helper()
			if err := members.Leave(t.Context(), kind, "h1", ""); err != nil {
				t.Fatal(err)
			}
		}
		check(3, 0, 0) // no server waits
		if err := s.CreateServer(t.Context(), &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, Hostname: "s"}); err != nil {
			t.Fatal(err)
		}
		check(3, 2, 0) // the conductor and the scheduler: without a conductor, nothing is known of compute services
		join(store.ConductorBinary)
		check(3, 3, 1) // the compute service
		join(store.SchedulerBinary)
		join(store.ComputeBinary)
		check(3, 3, 3)
		leave(store.SchedulerBinary)
		check(1, 3, 3)
		join(store.SchedulerBinary)
		check(3, 3, 3) // it was restarted
		leave(store.SchedulerBinary)
		check(3, 4, 3)
	})
}
