package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestSoftDeleted: as in Nova, lists leave out soft-deleted servers. Exceptions are lists with changes-since, and lists in which an
// administrator asks for soft-deleted servers. The project of the server can show it by its ID, restore it, and delete it at once.
func TestSoftDeleted(t *testing.T) {
	t.Parallel()
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		here, soft := c.addActive("here"), c.addActive("soft")
		if status, reply := c.ask("member", http.MethodDelete, "/servers/"+soft, ""); status != 204 {
			t.Fatalf("%d %s", status, reply)
		}
		if reply := c.want(200, "2.1", "member", "GET", "/servers/"+soft, ""); !strings.Contains(reply, `"OS-EXT-STS:task_state":"soft-deleting"`) {
			t.Errorf("a server during its soft deletion: %s", reply)
		}
		c.exec(`UPDATE operations SET state = 'succeeded', active = NULL, due_at = NULL WHERE active = ?`, soft)
		c.exec(`UPDATE servers SET vm_state = 'soft-delete', soft_deleted_at = updated_at WHERE id = ?`, soft)
		for _, tt := range []struct {
			who, query  string
			here, there bool
		}{
			{"member", "", true, false},
			{"admin", "", true, false},
			{"member", "?deleted=False", true, false},
			{"member", "?status=SOFT_DELETED", false, false},
			{"member", "?deleted=True", true, false},
			{"member", "?soft_deleted=True", true, false},
			{"admin", "?soft_deleted=True", true, true},
			{"admin", "?soft_deleted=True&status=SOFT_DELETED", false, true},
			{"admin", "?soft_deleted=False", true, false},
			{"admin", "?deleted=True", false, true},
			{"admin", "?deleted=True&status=SOFT_DELETED", false, true},
			{"admin", "?deleted=True&status=ACTIVE", false, false},
			{"admin", "?status=DELETED", false, false},
			{"member", "?changes-since=2001-01-01T00:00:00Z", true, true},
			{"member", "?name=soft", false, false},
		} {
			for _, path := range []string{"/servers", "/servers/detail"} {
				reply := c.want(200, "2.1", tt.who, "GET", path+tt.query, "")
				if strings.Contains(reply, here) != tt.here || strings.Contains(reply, soft) != tt.there {
					t.Errorf("%s%s by %s: %s", path, tt.query, tt.who, reply)
				}
			}
		}
		if reply := c.want(200, "2.1", "member", "GET", "/servers/"+soft, ""); !strings.Contains(reply, `"status":"SOFT_DELETED"`) || !strings.Contains(reply, `"OS-EXT-STS:power_state":4`) {
			t.Errorf("a soft-deleted server: %s", reply)
		}
		c.wantAct("stranger", soft, `{"restore": null}`, 404, "could not be found")
		c.wantAct("member", soft, `{"os-start": null}`, 409, "Cannot 'start' instance "+soft+" while it is in vm_state soft-delete")
		c.wantAct("member", here, `{"restore": null}`, 409, "Cannot 'restore' instance "+here+" while it is in vm_state active")
		c.wantAct("member", soft, `{"restore": null}`, 202, "")
		if srv, err := c.store.Server(t.Context(), soft); err != nil || srv.Task() != "restoring" {
			t.Errorf("a server during its restoration: %+v, %v", srv, err)
		}
		c.wantAct("member", soft, `{"forceDelete": null}`, 202, "")
		if srv, err := c.store.Server(t.Context(), soft); err != nil || srv.Task() != store.Deleting {
			t.Errorf("a server that is deleted at once: %+v, %v", srv, err)
		}
		c.wantAct("member", here, `{"lock": null}`, 202, "")
		if status, reply := c.ask("member", http.MethodDelete, "/servers/"+here, ""); status != 409 || !strings.Contains(reply, "is locked") {
			t.Errorf("soft deletion of a locked server: %d %s", status, reply)
		}
	}, func(cfg *api.Config) { cfg.SoftDelete = true })
}

// TestRestoreQuota: a soft-deleted server does not count in the quota. It is restored only if the quota has room.
func TestRestoreQuota(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, store.Limits{store.Instances: 1}, func(c *cloud) {
		id := c.addActive("a")
		c.exec(`UPDATE servers SET vm_state = ? WHERE id = ?`, compute.VMSoftDeleted, id)
		c.exec(`DELETE FROM quota_claims`)
		c.exec(`DELETE FROM quota_usage`)
		c.addActive("b")
		c.wantAct("member", id, `{"restore": null}`, 403, "Quota exceeded for instances: Requested 1, but already used 1 of 1 instances")
	})
}
