package api_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestIdempotencyKey: if a client repeats a request to create a server or a flavor with the same Idempotency-Key, the client gets the same
// answer, with the same password, and nothing more is created.
func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		post := func(who, path, body, key string) (int, string, string) {
			r := httptest.NewRequestWithContext(c.Context(), http.MethodPost, "/v2.1"+path, strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("X-Auth-Token", who)
			r.Header.Set("Idempotency-Key", key)
			w := httptest.NewRecorder()
			c.ServeHTTP(w, r)
			return w.Code, w.Body.String(), w.Header().Get("Location")
		}
		for path, tt := range map[string]struct {
			who, body, other string
			status           int
		}{
			"/servers": {"member", `{"server": {"name": "a", "flavorRef": "1", "imageRef": "i"}}`, `{"server": {"name": "b", "flavorRef": "1", "imageRef": "i"}}`, 202},
			"/flavors": {"admin", `{"flavor": {"name": "a", "ram": 1, "vcpus": 1, "disk": 1}}`, `{"flavor": {"name": "b", "ram": 1, "vcpus": 1, "disk": 1}}`, 200},
		} {
			count := func() int {
				list, _ := c.list("admin", path[1:], "all_tenants=1&is_public=None")
				return len(list)
			}
			before := count()
			status, body, location := post(tt.who, path, tt.body, "key"+path)
			if status != tt.status || count() != before+1 {
				c.Fatalf("%s: %d %s, %d more", path, status, body, count()-before)
			}
			for range 2 {
				if s, b, l := post(tt.who, path, tt.body, "key"+path); s != status || b != body || l != location || count() != before+1 {
					c.Errorf("%s: %d %s %s, then %d %s %s, %d more", path, status, body, location, s, b, l, count()-before)
				}
			}
			if s, b, _ := post(tt.who, path, tt.other, "key"+path); s != 422 || count() != before+1 {
				c.Errorf("%s, another body: %d %s", path, s, b)
			}
		}
		if s, b, _ := post("member", "/servers/none/action", `{"os-stop": null}`, "k"); s != 404 && s != 400 {
			c.Errorf("an action with a key: %d %s", s, b)
		}
	})
}
