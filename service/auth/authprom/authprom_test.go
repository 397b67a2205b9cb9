package authprom_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/internal/promtest"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/auth/authprom"
)

// TestMetrics: a validation is counted by its source and its result. The server answers as Keystone's v3 API does.
func TestMetrics(t *testing.T) {
	t.Parallel()
	keystone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch token := r.Header.Get("X-Subject-Token"); {
		case r.Method == http.MethodPost:
			w.Header().Set("X-Subject-Token", "own")
			w.WriteHeader(http.StatusCreated)
		case token == "good":
			_, _ = io.WriteString(w, `{"token": {"expires_at": "`+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`", "user": {"id": "u"}}}`)
		case token == "unknown":
			w.WriteHeader(http.StatusNotFound)
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer keystone.Close()
	m := authprom.New()
	k, err := auth.NewKeystone(auth.KeystoneConfig{URL: keystone.URL, Username: "u", Password: "p", ProjectName: "service", Observe: m.Observe, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Stop(t.Context())
	for _, token := range []string{"good", "good", "good", "unknown", "unknown", "broken"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.Header.Set(auth.Header, token)
		if _, err := k.Authenticate(r); (err == nil) != (token == "good") {
			t.Errorf("%s: %v", token, err)
		}
	}
	want := map[string]float64{
		"validations_total{result=valid,source=identity_service}": 1, "validations_total{result=valid,source=cache}": 2,
		"validations_total{result=refused,source=identity_service}": 1, "validations_total{result=refused,source=cache}": 1,
		"validations_total{result=error,source=identity_service}": 1, "identity_service_duration_seconds": 3,
	}
	if diff := cmp.Diff(want, promtest.Gather(t, "armature_auth_", m)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
