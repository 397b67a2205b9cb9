package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
)

// TestQuotaOfProcesses: quotas are exact with several API processes. Of many requests at the same time, as many succeed as the quota allows, and the others get Nova's text.
func TestQuotaOfProcesses(t *testing.T) {
	t.Parallel()
	scenario(t)
	const requests, allowed = 12, 5 // requests to each process
	c := newCloudOf(t, "", fmt.Sprintf("[quota]\ninstances = %d\ncores = -1\nram = -1\nserver_groups = %d\n", allowed, allowed))
	var clients []*gophercloud.ServiceClient
	for _, name := range []string{"api-1", "api-2", "api-3"} {
		clients = append(clients, c.client(c.start("api", name)))
	}
	for path, body := range map[string]string{"servers": demo, "os-server-groups": `{"server_group": {"name": "g", "policies": ["affinity"]}}`} {
		var mu sync.Mutex
		var wg sync.WaitGroup
		got := map[int]int{} // requests by status
		for _, cl := range clients {
			for range requests {
				wg.Go(func() {
					a := request(t, http.MethodPost, cl.Endpoint+path, "application/json", strings.NewReader(body))
					mu.Lock()
					defer mu.Unlock()
					got[a.status]++
					if a.status == http.StatusForbidden && !strings.Contains(a.body, "Quota exceeded") {
						t.Errorf("%s: %v", path, a)
					}
				})
			}
		}
		wg.Wait()
		made, refused := got[http.StatusAccepted]+got[http.StatusOK], got[http.StatusForbidden]
		if made != allowed || refused != requests*len(clients)-allowed {
			t.Errorf("%s: replies by status %v, want %d that succeed and %d with 403", path, got, allowed, requests*len(clients)-allowed)
		}
	}
}
