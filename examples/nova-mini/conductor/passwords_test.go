package conductor_test

import (
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestChangePassword: the compute service gets the new password. The database keeps the password only until the action ends, even if the action fails
// or a reset of the state ends it. A retry of the operation fails, because it would set an empty password.
func TestChangePassword(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		kept := func(after string) {
			b.Helper()
			var n int
			if err := b.db.GetContext(b.Context(), &n, `SELECT COUNT(*) FROM servers WHERE admin_pass IS NOT NULL`); err != nil || n != 0 {
				b.Errorf("after %s the database has the password, %v", after, err)
			}
			var data []string
			if err := b.db.SelectContext(b.Context(), &data, `SELECT data FROM operations`); err != nil || strings.Contains(strings.Join(data, ""), "secret") {
				b.Errorf("after %s an operation has the password: %q, %v", after, data, err)
			}
		}
		for _, failed := range []string{"", "no agent"} {
			r := b.act(id, compute.ChangePassword, store.ActData{AdminPass: new("secret")})
			if r.AdminPass != "secret" {
				b.Errorf("the request has the password %q", r.AdminPass)
			}
			if err := b.report("h1", r.Token, failed); err != nil {
				b.Fatal(err)
			}
			kept("the end with the error " + failed)
		}
		last := b.ended(id, compute.ChangePassword)
		if err := b.store.Operations().Retry(b.Context(), last); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		b.awaitNoTask(id)
		if s := b.server(id); !strings.Contains(s.FaultDetails, "the password is not kept") {
			b.Errorf("a retry without the password: %q", s.FaultDetails)
		}
		b.act(id, compute.ChangePassword, store.ActData{AdminPass: new("secret")})
		if err := b.store.ResetState(b.Context(), id, store.Active); err != nil {
			b.Fatal(err)
		}
		kept("a reset of the state")
	})
}

// TestRescuePassword: the compute service gets the password of a rescue, and the database keeps it only until the rescue ends. A rescue that is repeated later has no password.
func TestRescuePassword(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		r := b.act(id, compute.Rescue, store.ActData{AdminPass: new("secret")})
		if r.AdminPass != "secret" || r.Spec != nil {
			b.Errorf("the request: %+v", r)
		}
		b.endWith(r, "no image", false)
		var n int
		if err := b.db.GetContext(b.Context(), &n, `SELECT COUNT(*) FROM servers WHERE admin_pass IS NOT NULL`); err != nil || n != 0 {
			b.Errorf("after the end the database has the password, %v", err)
		}
		if err := b.store.Operations().Retry(b.Context(), b.ended(id, compute.Rescue)); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		if r = b.awaitAct(id); r.AdminPass != "" {
			b.Errorf("the repeated request: %+v", r)
		}
		b.endWith(r, "", false)
		if s := b.server(id); s.VMState != compute.VMRescued {
			b.Errorf("the rescued server: %+v", s)
		}
	})
}
