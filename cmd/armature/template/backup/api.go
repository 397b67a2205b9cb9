package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/policy"
)

// Backup is the resource, as the API shows it and as the database stores it.
type Backup struct {
	ID        string    `json:"id" db:"id"`
	ProjectID string    `json:"project_id" db:"project_id"`
	Name      string    `json:"name" db:"name"`
	Size      int64     `json:"size" db:"size"` // in GiB
	Status    string    `json:"status" db:"status"`
	Host      string    `json:"host" db:"host"` // empty until a host was chosen
	CreatedAt time.Time `json:"created_at" db:"created_at"`
}

// The values of Status.
const (
	creating  = "creating"
	available = "available"
	deleting  = "deleting"
	failed    = "error"
)

// newBackup is the body of a request for a backup.
type newBackup struct {
	Name string `json:"name" min:"1" max:"255"`
	Size int64  `json:"size" min:"1"`
}

// backupList is a page of backups.
type backupList struct {
	Backups []Backup   `json:"backups"`
	Links   []api.Link `json:"backups_links,omitempty"`
}

// lists says how clients may filter and sort: GET /v1/backups?status=error&sort_key=name&limit=10.
var lists = listing.Spec{
	Filters: []listing.Filter{{Name: "name", Column: "name"}, {Name: "status", Column: "status", Operator: listing.In}},
	Sorts:   []listing.Sort{{Name: "name", Column: "name"}, {Name: "created_at", Column: "created_at"}},
	Default: listing.SortKey{Column: "created_at", Desc: true},
}

// rules are the rules of the policy. An operator may change them: see "backup policy sample".
var rules = []policy.Rule{
	{Name: "backup:create", Check: "role:member", Description: "Create a backup."},
	{Name: "backup:list", Check: "role:reader", Description: "List the backups of a project."},
	{Name: "backup:show", Check: "role:reader and project_id:%(project_id)s", Description: "Show a backup."},
	{Name: "backup:delete", Check: "role:member and project_id:%(project_id)s", Description: "Delete a backup."},
}

// apiService has the handlers of the REST API.
type apiService struct{ *component.Process[options] }

func wireAPI(_ context.Context, p *component.Process[options]) error {
	s := &apiService{p}
	one := api.Target[Backup]{
		Load:    s.load,
		Policy:  func(b Backup) map[string]any { return map[string]any{"project_id": b.ProjectID} },
		Missing: func(r *http.Request) error { return notFound(r.PathValue("id")) },
	}
	return p.API(api.Config{}, func(m *api.Mux) {
		m.Discover(api.Discovery{ID: "v1", Path: "/v1"})
		api.HandleRoute(m, api.Route{Pattern: "POST /v1/backups", Rule: "backup:create", Summary: "Create a backup"}, s.create)
		api.HandleRoute(m, api.Route{Pattern: "GET /v1/backups", Rule: "backup:list", List: &lists, Summary: "List backups"}, s.list)
		api.HandleTarget(m, api.Route{Pattern: "GET /v1/backups/{id}", Rule: "backup:show", Summary: "Show a backup"}, one, s.show)
		api.HandleTarget(m, api.Route{Pattern: "DELETE /v1/backups/{id}", Rule: "backup:delete", Status: http.StatusAccepted, Summary: "Delete a backup"}, one, s.remove)
	})
}

// create accepts a request. It writes the row of the backup and begins the operation in one transaction, so that neither exists without the other.
func (s *apiService) create(ctx context.Context, r *api.Request[newBackup]) (Backup, error) {
	if limit := s.Current().MaxSize; r.Body.Size > limit {
		return Backup{}, fault.New(fault.Invalid, "Size %d is above the limit of %d GiB.", r.Body.Size, limit)
	}
	b := Backup{
		ID: uuid.NewString(), ProjectID: reqctx.From(ctx).ProjectID, Name: r.Body.Name, Size: r.Body.Size,
		Status: creating, CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
	}
	r.Accepted("/v1/backups/" + b.ID)
	return b, component.Begin(ctx, s.Process, createKind, b.ID, &work{ID: b.ID, Size: b.Size}, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.NamedExecContext(ctx, `INSERT INTO backups (id, project_id, name, size, status, host, created_at)
			VALUES (:id, :project_id, :name, :size, :status, :host, :created_at)`, b)
		return db.Error(err)
	})
}

// list returns a page of the backups of the client's project.
func (s *apiService) list(ctx context.Context, r *api.Request[api.None]) (out backupList, err error) {
	page := db.Page{From: "backups", Key: "id", Within: "project_id = ?", WithinArgs: []any{reqctx.From(ctx).ProjectID}}
	out.Backups, _, err = db.List[Backup](ctx, s.DB, page.Select(r.List))
	if err == nil && len(out.Backups) > 0 {
		out.Links = r.NextPage(len(out.Backups), out.Backups[len(out.Backups)-1].ID)
	}
	return out, err
}

// load returns the backup that a path names. The rule of the route decides whether the client may see it.
func (s *apiService) load(ctx context.Context, r *http.Request) (b Backup, err error) {
	err = db.Error(s.DB.GetContext(ctx, &b, `SELECT `+db.Columns[Backup]()+` FROM backups WHERE id = ?`, r.PathValue("id")))
	if errors.Is(err, fault.NotFound) {
		err = notFound(r.PathValue("id"))
	}
	return b, err
}

func notFound(id string) error {
	return fault.New(fault.NotFound, "Backup %s could not be found.", id)
}

func (s *apiService) show(_ context.Context, _ *api.Request[api.None], b Backup) (Backup, error) {
	return b, nil
}

// remove accepts the deletion of a backup. The deletion ends a creation that still runs.
func (s *apiService) remove(ctx context.Context, _ *api.Request[api.None], b Backup) (api.None, error) {
	return api.None{}, component.Begin(ctx, s.Process, deleteKind, b.ID, &work{ID: b.ID}, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := db.Exec(ctx, tx, `UPDATE backups SET status = ? WHERE id = ?`, deleting, b.ID)
		return err
	})
}
