package store

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
)

// Backup says of what type a backup of a server is, and how many of the type the server keeps.
type Backup struct {
	Type string `json:"type"`
	Keep int    `json:"keep"`
	// ProjectID is the project to which the backups belong.
	ProjectID string `json:"project_id"`
	// ByDriver means that the driver keeps the backups, because there is no image service.
	ByDriver bool `json:"by_driver,omitempty"`
	// Made means that the new backup is complete.
	Made bool `json:"made,omitempty"`
	// Remove are the backups that the driver removes.
	Remove []string `json:"remove,omitempty"`
}

// AddBackup remembers an image that the driver of a server's host keeps as a backup. It runs in the transaction that ends the operation's step. A
// server that does not exist is not an error, nor is an image that is known, as after operation.Store.Retry.
func (s *Store) AddBackup(ctx context.Context, tx *sqlx.Tx, id, image, backupType string) error {
	_, err := db.Exec(ctx, tx, `INSERT INTO backups (image_id, server_id, host, backup_type, created_at) SELECT ?, id, host, ?, UTC_TIMESTAMP(6) FROM servers
		WHERE id = ? AND host IS NOT NULL AND NOT EXISTS (SELECT 1 FROM backups WHERE image_id = ?)`, image, backupType, id, image)
	return err
}

// ExcessBackups returns the backups of a server on its host that exceed the newest ones that the server keeps, at most 1000, the oldest first.
func (s *Store) ExcessBackups(ctx context.Context, id string, b *Backup) (out []string, err error) {
	var list []struct {
		ID   string `db:"image_id"`
		Type string `db:"backup_type"`
	}
	err = db.Error(s.db.SelectContext(ctx, &list, `SELECT image_id, backup_type FROM backups
		WHERE server_id = ? AND host = (SELECT host FROM servers WHERE id = ?) ORDER BY created_at, image_id`, id, id))
	for _, one := range list {
		if one.Type == b.Type { // compared here, because some databases ignore the case of letters
			out = append(out, one.ID)
		}
	}
	return out[:min(max(len(out)-b.Keep, 0), 1000)], err
}

// ForgetBackups forgets images that a driver has removed. It runs in the transaction in which the operation ends.
func (s *Store) ForgetBackups(ctx context.Context, tx *sqlx.Tx, images []string) error {
	if len(images) == 0 {
		return nil
	}
	query, args, err := sqlx.In(`DELETE FROM backups WHERE image_id IN (?)`, images)
	if err == nil {
		_, err = db.Exec(ctx, tx, query, args...)
	}
	return err
}
