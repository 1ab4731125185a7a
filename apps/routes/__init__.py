"""What can be asked of the server, one file a subject: each makes an APIRouter."""
